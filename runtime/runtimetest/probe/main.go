// Command probe is the program that the conformance suite runs in containers:
// static, so that a root filesystem needs nothing else.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: probe WORD [ARG]...")
	}
	a := os.Args[2:]
	switch os.Args[1] {
	case "say": // to stdout, then to stderr
		fmt.Println(a[0])
		if len(a) > 1 {
			fmt.Fprintln(os.Stderr, a[1])
		}
	case "exit":
		os.Exit(number(a[0]))
	case "env":
		fmt.Print(os.Getenv(a[0]))
	case "cwd":
		d, err := os.Getwd()
		check(err)
		fmt.Print(d)
	case "cat":
		b, err := os.ReadFile(a[0])
		check(err)
		os.Stdout.Write(b)
	case "ls":
		l, err := os.ReadDir(a[0])
		check(err)
		for _, e := range l {
			fmt.Println(e.Name())
		}
	case "stat":
		fi, err := os.Stat(a[0])
		check(err)
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Printf("%d:%d %o", st.Uid, st.Gid, fi.Mode().Perm())
	case "write":
		check(os.WriteFile(a[0], []byte(a[1]), 0o644))
	case "remove":
		check(os.Remove(a[0]))
	case "mkdir":
		check(os.MkdirAll(a[0], 0o755))
	case "chown":
		check(os.Chown(a[0], number(a[1]), number(a[1])))
	case "yes": // many bytes
		n := number(a[0])
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintln(w, i)
		}
		check(w.Flush())
	case "sleep": // says so when it has begun
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "stubborn": // does not end for TERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "parent": // with a child that outlives a signal to one process
		c := exec.Command(os.Args[0], "sleep")
		c.Stdout = os.Stdout
		check(c.Start())
		c.Wait()
	case "frames": // sends each frame back until one says stop
		frames(os.NewFile(3, "frames"))
	case "alloc": // touches so many bytes
		b := make([]byte, number(a[0]))
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Print("allocated")
	case "fork": // so many processes at once
		for i := range number(a[0]) {
			c := exec.Command(os.Args[0], "sleep")
			if err := c.Start(); err != nil {
				fmt.Printf("%d: %v", i, err)
				os.Exit(1)
			}
		}
		fmt.Print("forked")
	case "fill": // a file with so many bytes
		f, err := os.Create(a[0])
		check(err)
		buf := make([]byte, 1<<20)
		for range number(a[1]) >> 20 {
			if _, err := f.Write(buf); err != nil {
				fail(err.Error())
			}
		}
		check(f.Close())
	case "spin": // burns CPU for so many milliseconds and says how much it got
		spin(number(a[0]))
	case "dial":
		c, err := net.DialTimeout("tcp", a[0], 5*time.Second)
		check(err)
		b, err := io.ReadAll(c)
		check(err)
		os.Stdout.Write(b)
	case "serve": // on a port, until killed
		l, err := net.Listen("tcp", a[0])
		check(err)
		fmt.Println("serving")
		for {
			c, err := l.Accept()
			check(err)
			io.WriteString(c, "hello")
			c.Close()
		}
	case "lookup":
		l, err := net.LookupHost(a[0])
		check(err)
		fmt.Print(strings.Join(l, " "))
	default:
		fail("unknown word " + os.Args[1])
	}
}

func spin(ms int) {
	end := time.Now().Add(time.Duration(ms) * time.Millisecond)
	for x := 1; time.Now().Before(end); x++ {
	}
	var ru syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &ru))
	fmt.Print(time.Duration(ru.Utime.Nano() + ru.Stime.Nano()).Milliseconds())
}

func frames(f *os.File) {
	r := bufio.NewReader(f)
	for n := 0; ; n++ {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			fail(err.Error())
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:])+binary.BigEndian.Uint32(head[4:]))
		_, err := io.ReadFull(r, body)
		check(err)
		fmt.Printf("frame %d\n", n) // before the frame it belongs to
		_, err = f.Write(append(head[:], body...))
		check(err)
		if strings.Contains(string(body), "stop") {
			return
		}
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(msg string) {
	fmt.Fprintln(os.Stderr, msg)
	os.Exit(1)
}
