package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// calm is how long the ruleset must be quiet before we look at it: a firewall
// that restarts changes it hundreds of times in a row.
const calm = 200 * time.Millisecond

// watch returns a channel on which each change of the machine's firewall rules
// or addresses leaves a word, until ctx ends.
func (n *Network) watch(ctx context.Context) (<-chan struct{}, error) {
	rules, err := nl.Dial(unix.NETLINK_NETFILTER, &nl.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("watch firewall: %w", err)
	}
	changed := make(chan struct{}, 1)
	note := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	addrs := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		rules.Close()
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	context.AfterFunc(ctx, func() { rules.Close(); close(done) })
	n.wg.Add(2)
	go func() {
		defer n.wg.Done()
		for {
			if _, err := rules.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				if ctx.Err() == nil && !errors.Is(err, os.ErrClosed) {
					n.log.Error("watch of firewall rules ended", "err", err)
				}
				return
			}
			note() // also when messages were lost
		}
	}()
	go func() {
		defer n.wg.Done()
		for range addrs { // closed after done
			note()
		}
	}()
	return changed, nil
}

// follow keeps our rules in force while others change theirs.
func (n *Network) follow(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(calm):
		case <-ctx.Done():
			return
		}
		select {
		case <-changed:
		default:
		}
		if err := n.apply(); err != nil && ctx.Err() == nil {
			n.log.Error("keep firewall rules", "bridge", n.cfg.Name, "err", err)
		}
	}
}

// apply writes the table if it is missing or the machine's networks have
// changed, and lets the bridge through other firewalls.
func (n *Network) apply() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	there, err := n.tableExists()
	if err != nil {
		return err
	}
	now, err := n.connected()
	if err != nil {
		return err
	}
	if key := fmt.Sprint(now); !there || key != n.legs {
		if err := n.writeTableLocked(); err != nil {
			return err
		}
		n.legs = key
	}
	return openForeign(n.cfg.Name)
}
