// Package results is what simulations leave behind: a file of JSON lines, one
// Record for each run, and beside it a log of how the runs went.
//
//	fill.jsonl      {"experiment":"fill","policy":"fgd","seed":42,"params":{…},"metrics":[…],"series":[…]}
//	fill.jsonl.log  {"key":"…","wall_ms":812,"events_per_second":…,"version":"…"}
//
// A line of the first depends on nothing but the run: the same code gives the
// same bytes on every machine, so two versions can be compared with cmp. What
// depends on the machine and the day is in the log.
//
// A Store is the one writer of such a file; Read takes it as it is, also while
// it is written or after a crash. Summarize gives mean and spread over seeds.
// Values are safe for concurrent reading; a Store is used by one goroutine at a
// time.
package results
