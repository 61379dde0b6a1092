package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Shares is the weight that goes with a CPU limit: who asked for more gets more
// when the machine is full. Bounds are the kernel's for v1.
func Shares(cpuMillis int64) uint64 {
	return uint64(min(max(cpuMillis*1024/1000, 2), 262144))
}

// Quota is the CPU time per Period. The kernel's least is 1 ms.
func Quota(cpuMillis int64) time.Duration {
	return max(Period*time.Duration(cpuMillis)/1000, time.Millisecond)
}

// QuotaIn is the Quota for a group right below g. On v1 the kernel refuses one
// above that of any group around it, so the least of those is the limit.
func (g *Group) QuotaIn(cpuMillis int64) time.Duration {
	q := Quota(cpuMillis)
	if g.h.unified != "" {
		return q
	}
	for at := g; ; at = g.h.Group(filepath.Dir(at.path)) {
		around, err := at.number("cpu", "cpu.cfs_quota_us") // -1 = none
		period, perr := at.number("cpu", "cpu.cfs_period_us")
		if err == nil && perr == nil && around > 0 && period > 0 {
			q = min(q, max(Period*time.Duration(around)/time.Duration(period), time.Millisecond))
		}
		if at.path == "/" {
			return q
		}
	}
}

// SwapAccounting reports whether swap can be limited (v1 kernels may be
// started without).
func (h *Hierarchy) SwapAccounting() bool {
	if h.unified != "" {
		return true
	}
	_, err := os.Stat(filepath.Join(h.v1["memory"], "memory.memsw.limit_in_bytes"))
	return err == nil
}

// Set changes the limits of a group that exists. Memory can be lowered only as
// far as the kernel can reclaim.
func (g *Group) Set(l Limits) error {
	var writes [][3]string // controller, file, value
	add := func(c, file string, v any) { writes = append(writes, [3]string{c, file, fmt.Sprint(v)}) }
	v2 := g.h.unified != ""
	if l.CPUMillis > 0 {
		around := g.h.Group(filepath.Dir(g.path))
		quota, period := around.QuotaIn(l.CPUMillis).Microseconds(), Period.Microseconds()
		if v2 {
			add("", "cpu.max", fmt.Sprintf("%d %d", quota, period))
			// The same curve as runc uses to turn shares (2..2^18) into a weight (1..10^4).
			add("", "cpu.weight", 1+(Shares(l.CPUMillis)-2)*9999/262142)
		} else {
			add("cpu", "cpu.cfs_quota_us", quota)
			add("cpu", "cpu.shares", Shares(l.CPUMillis))
		}
	}
	if l.PIDs > 0 {
		add("pids", "pids.max", l.PIDs)
	}
	if l.MemoryBytes > 0 {
		switch {
		case v2:
			add("", "memory.max", l.MemoryBytes)
			add("", "memory.swap.max", 0)
		case !g.h.SwapAccounting():
			add("memory", "memory.limit_in_bytes", l.MemoryBytes)
		default:
			// memory <= memory+swap must hold after each write.
			old, err := g.number("memory", "memory.limit_in_bytes")
			if err != nil {
				return fmt.Errorf("set limits: %w", err)
			}
			first, second := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
			if l.MemoryBytes > old {
				first, second = second, first
			}
			add("memory", first, l.MemoryBytes)
			add("memory", second, l.MemoryBytes)
		}
	}
	for _, w := range writes {
		if err := os.WriteFile(filepath.Join(g.dir(w[0]), w[1]), []byte(w[2]), 0); err != nil {
			return fmt.Errorf("set limit %s to %s: %w", w[1], w[2], err)
		}
	}
	return nil
}

// Usage reads what the group has consumed so far.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	var errs [4]error
	if g.h.unified != "" {
		var usec int64
		usec, errs[0] = g.field("", "cpu.stat", "usage_usec")
		u.CPU = time.Duration(usec) * time.Microsecond
		u.MemoryBytes, errs[1] = g.number("", "memory.current")
	} else {
		var ns int64
		ns, errs[0] = g.number("cpuacct", "cpuacct.usage")
		u.CPU = time.Duration(ns)
		u.MemoryBytes, errs[1] = g.number("memory", "memory.usage_in_bytes")
	}
	u.OOMKills, errs[2] = g.OOMKills()
	u.PIDs, errs[3] = g.number("pids", "pids.current")
	if err := errors.Join(errs[:]...); err != nil {
		return u, fmt.Errorf("read usage: %w", err)
	}
	return u, nil
}

// OOMKills is how many processes the kernel has killed for want of memory.
func (g *Group) OOMKills() (int64, error) {
	if g.h.unified != "" {
		return g.field("", "memory.events", "oom_kill")
	}
	return g.field("memory", "memory.oom_control", "oom_kill")
}

func (g *Group) number(controller, file string) (int64, error) {
	p := filepath.Join(g.dir(controller), file)
	b, err := os.ReadFile(p)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p, err)
	}
	return n, nil
}

// field reads "key value" from a file of such lines.
func (g *Group) field(controller, file, key string) (int64, error) {
	p := filepath.Join(g.dir(controller), file)
	b, err := os.ReadFile(p)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", p, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("read %s: no %s: %w", p, key, fs.ErrNotExist)
}
