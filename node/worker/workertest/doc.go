// Package workertest lets tests run real calls without containers: workers whose
// engine starts plain processes of this machine, and a runner that is the test
// binary itself.
//
//	func TestMain(m *testing.M) { workertest.Main(); os.Exit(m.Run()) }
//
//	net := meshtest.NewNetwork()
//	w := workertest.New(t, net.Join("box"), workertest.Options{})
//	w.Mesh.Start()
//	order := workertest.Order("ok:f")
//
// The handler in a work order chooses how the program loads ("ok:f", "syntax:f",
// "die:3"…), the arguments of a call what it does ("echo x", "fail x", "exit 3",
// "hold", "gate PATH"…); runner.go has them all.
package workertest
