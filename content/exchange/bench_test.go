package exchange_test

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/exchange"
)

const benchChunks = 256 // 64 MiB

// listen serves connections on loopback TCP until the benchmark ends.
func listen(b *testing.B, fn func(net.Conn)) tcpOpener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go fn(c)
		}
	}()
	return tcpOpener(l.Addr().String())
}

type tcpOpener string

func (o tcpOpener) OpenBlocks(context.Context, string) (io.ReadWriteCloser, error) {
	return net.Dial("tcp", string(o))
}

// BenchmarkRawTCP is the floor: the same bytes over one loopback connection.
func BenchmarkRawTCP(b *testing.B) {
	data := random(benchChunks * content.ChunkSize)
	to := listen(b, func(c net.Conn) { c.Write(data); c.Close() })
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c, err := to.OpenBlocks(ctx, "")
		must(b, err)
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		must(b, err)
		c.Close()
	}
}

func benchFetch(b *testing.B, seed, dst func() content.Blocks, pipe bool, sources ...string) {
	s := seed()
	info := importTo(b, s, source(b, benchChunks, 0))
	var open content.Opener
	if pipe {
		m := newMesh(b)
		for _, name := range sources {
			m.serve(name, s)
		}
		open = m
	} else {
		srv := exchange.NewServer(s, exchange.ServerOptions{})
		open = listen(b, func(c net.Conn) { srv.Serve(ctx, "x", c) })
	}
	b.SetBytes(info.Bytes)
	b.ReportAllocs()
	for b.Loop() {
		f := exchange.NewFetcher(dst(), open, exchange.FetcherOptions{})
		_, err := f.Fetch(ctx, info.Root, sources, nil)
		must(b, err)
	}
}

func memory() content.Blocks { return &blockstest.Memory{} }

func BenchmarkFetchPipe(b *testing.B)   { benchFetch(b, memory, memory, true, "one") }
func BenchmarkFetchPipe3(b *testing.B)  { benchFetch(b, memory, memory, true, "one", "two", "three") }
func BenchmarkFetchMemory(b *testing.B) { benchFetch(b, memory, memory, false, "one") }

func BenchmarkFetchDisk(b *testing.B) {
	disk := func() content.Blocks {
		s, err := blocks.Open(b.TempDir(), blocks.Options{})
		must(b, err)
		b.Cleanup(func() { s.Close() })
		return s
	}
	benchFetch(b, disk, disk, false, "one")
}
