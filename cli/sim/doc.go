// Package sim is `beam sim`, the command line of the simulator: list, run, sweep,
// report, compare, replay. It needs no node, no mesh and no root.
//
//	cli.Roles{Sim: sim.Command(sim.Experiments())}
//
// It is the one part of the command line that imports simulations; what it
// prints follows the rules of package cli.
package sim
