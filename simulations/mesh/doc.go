// Package mesh simulates a whole mesh message by message: the owners and workers
// of package scheduler/market, unchanged, with the shells of a node around them
// made up. It is for what only shows when many of them meet: views that are old,
// owners that want the same node, machines and owners that die.
//
//	cfg := mesh.Config{Seed: 1, Latency: time.Millisecond, ...}
//	err := mesh.Synthetic{Nodes: 1000, Owners: 4, Tasks: 10_000, ...}.Fill(&cfg)
//	w, err := mesh.New(cfg)
//	err = w.Run(ctx, time.Hour)
//	w.Stats()          // messages by kind, times
//	cfg.Tasks[0][7]    // what became of a task
//
// Experiment is the same for "beam sim".
//
// What is modelled: the delay of every message (by zone, with jitter), loss,
// gossip of adverts by topic with its delay (scheduler.Subscriptions chooses who
// hears what), the directory, start and run time of containers, connections that
// break, nodes and owners that die and come back, the journal of an owner. What
// is not: bandwidth, the bytes of images, gossip's own repetitions (each advert
// and open offer counts once for each who hears it), and how the mix of demands
// spreads: all owners learn it in one stroke.
//
// The actors are spread over parts, one per core. All events of a tick, which is
// as long as the fastest message takes, are handled side by side, since none can
// be the cause of another of a different actor. What an actor sees is ordered by
// time, sender and the sender's count, and random numbers are functions of
// these: a run has the same bytes with any number of cores.
package mesh
