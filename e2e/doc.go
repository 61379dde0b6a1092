// Package e2e tests the product as it ships: bin/beam in network namespaces,
// real containers, the real Python SDK. It needs root; `make test` runs it.
//
// A test gets the mesh that all share (three nodes, an H100 pair on node2 and an
// RTX4090 on node3, all simulated) or makes its own when it breaks things.
package e2e
