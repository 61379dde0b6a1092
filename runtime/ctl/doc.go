// Package ctl is the protocol between the node and init (PID 1) in a container,
// spoken over the unix socket ctl.sock which the node listens on.
//
// A message is a frame:
//
//	uint32 big endian  length of header
//	uint32 big endian  length of body
//	header             JSON, one Message
//	body               raw bytes
//
// Header <= 64 KiB, body <= 32 MiB: larger is a protocol error that ends the
// connection. The same framing, with the runner's own headers, is used on file
// descriptor 3 between init and a process that asked for Frames (init passes
// those frames through without looking inside).
package ctl
