// Package ctl is the protocol between the node and init (PID 1) in a
// container, spoken over the unix socket ctl.sock which the node listens on,
// and the node's side of it.
//
//	srv, err := ctl.Listen(dir, log)       // before the container starts; dir is bind-mounted at /run/beam
//	ses, err := srv.Wait(ctx)              // init has connected
//	p, err := ses.Exec(ctx, runtime.ProcessSpec{Args: []string{"python3", "-V"}, Output: print})
//	<-p.Done()
//	ses.Shutdown(10 * time.Second)         // TERM all, KILL the rest, init exits
//	<-ses.Done()
//
// # Messages
//
// A message on the wire is
//
//	uint32 big endian  length of header (<= 64 KiB)
//	uint32 big endian  length of body   (<= 1 MiB)
//	header             JSON, one Message
//	body               raw bytes
//
// A larger length, a header that is not a Message or a type that the receiver
// does not take is a protocol error; it ends the session, because what is in a
// container is not trusted.
//
// # Order, back-pressure and resuming
//
// Everything that concerns one process and comes from one side is numbered
// (Seq, from 1) and kept by its sender until the receiver has acknowledged it
// (Ack, cumulative). A sender never has more than Window bytes of a process
// unacknowledged, counted with Overhead per message, so a slow Output callback
// slows the process down and no side holds more than Window + one fragment per
// process. When the connection breaks, init dials again with the secret that
// it got on the first connection, says what it has received, and both sides
// send again what the other lacks.
//
// A runner frame (see runner.go) larger than Fragment travels as several Frame
// messages: Off is the fragment's offset, More is set on all but the last.
//
// A Session and its Processes are safe for concurrent use.
package ctl
