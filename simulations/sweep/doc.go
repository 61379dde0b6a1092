// Package sweep runs experiments: one run, or all runs of a scenario over the
// cores of this machine.
//
//	sum, err := sweep.Run(ctx, scenario, "fill.jsonl", sweep.Options{Jobs: 2, Version: v})
//
// Every result is on disk before the next run of its worker begins, so a sweep
// that is interrupted, or killed, loses what was running and nothing else; the
// same call goes on where it ended. A run that fails is recorded with its reason
// and the others go on. The finished file has the same bytes for any number of
// jobs.
package sweep
