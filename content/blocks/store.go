// Package blocks keeps content-addressed blocks as plain files.
//
//	s, err := blocks.Open(dir, blocks.Options{FloorBytes: 2 << 30})
//	...
//	err = s.Commit(ctx, root)           // fsync, list root as a whole tree
//	err = s.Pin(ctx, root, "image/abc") // keep it until Unpin
//	st, err := s.GC(ctx, 50<<30, tree.Blocks)
//
// Store has the methods of boxo's Blockstore. A block is written under a
// temporary name and renamed; it is durable after Sync or Commit. A block that
// a power cut tore is found by its hash when it is read, removed, and from then
// on reported as missing, so the next fetch brings it back.
//
// Store is safe for concurrent use; one process at a time may open a directory.
package blocks
