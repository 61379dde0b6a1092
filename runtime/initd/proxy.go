package initd

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"time"
)

// maxProxied bounds the connections per address that are joined at a time;
// more wait in the listen queue.
const maxProxied = 512

// serveProxy joins every connection to addr with a new one to the unix socket
// api, byte for byte, for as long as init lives. A connection is refused (by
// closing it) while nobody listens on api.
func serveProxy(addr, api string, log *slog.Logger) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	slots := make(chan struct{}, maxProxied)
	go func() {
		for {
			slots <- struct{}{}
			c, err := ln.Accept()
			if err != nil {
				<-slots
				if errors.Is(err, net.ErrClosed) {
					return
				}
				log.Warn("accept for the node's API", "addr", addr, "err", err)
				time.Sleep(100 * time.Millisecond) // out of descriptors: the processes inside must close some
				continue
			}
			go func() {
				defer func() { <-slots }()
				join(c.(*net.TCPConn), api, log)
			}()
		}
	}()
	return nil
}

// join copies both ways, passing half-closes on, and returns when both ended.
func join(c *net.TCPConn, api string, log *slog.Logger) {
	defer c.Close()
	d, err := net.DialTimeout("unix", api, 10*time.Second)
	if err != nil {
		log.Debug("dial the node's API", "err", err)
		return
	}
	u := d.(*net.UnixConn)
	defer u.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, err := io.Copy(c, u) // splices in the kernel
		if err != nil {
			u.Close()
		}
		_ = c.CloseWrite()
	}()
	if _, err := io.Copy(u, c); err != nil {
		c.Close()
	}
	_ = u.CloseWrite()
	<-back
}
