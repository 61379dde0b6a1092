// Package scenario reads text scenarios: which experiment to run, under which
// policies, seeds and parameters. A scenario is a few lines, in any order:
//
//	# What this is about; the first comment is shown by "beam sim list".
//	experiment fill
//	policy     fgd bestfit random     # none = the first of the experiment; all = all
//	seeds      42..51 60              # none = 1
//	set        list default           # a parameter for all runs
//	sweep      load 0.7 0.8 0.9       # a parameter with several values; lines multiply
//
// Words are separated by spaces and "#" starts a comment. Parse gives a
// Scenario, whose Runs are all combinations. Every error names file and line,
// says what is wrong and what to write instead. A Scenario is plain data: it may
// be read by several goroutines, its methods that change it may not run beside
// others.
package scenario
