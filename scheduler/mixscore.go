package scheduler

import "sort"

// scoreUnit is the resolution of scoreSteps, per milli-GPU.
const scoreUnit = 1_000_000

// scoreSteps[i] is where the score of Mix.Score becomes 50+i: the smallest x with
// 100/(1+exp(-x/1000)) >= 50+i, in milli-GPU / scoreUnit, rounded up.
var scoreSteps = [...]int64{
	0, 40005335, 80042708, 120144312, 160342651, 200670696, 241162057, 281851153,
	322773393, 363965378, 405465109, 447312219, 489548226, 532216814, 575364145, 619039209,
	663294218, 708185058, 753771803, 800119301, 847297861, 895384048, 944461609, 994622576,
	1045968556, 1098612289, 1152679510, 1208311206, 1265666374, 1324925415, 1386294362, 1450010176,
	1516347490, 1585627264, 1658228077, 1734601056, 1815289967, 1900958762, 1992430165, 2090741097,
	2197224578, 2313634930, 2442347036, 2586689345, 2751535314, 2944438980, 3178053831, 3476098690,
	3891820299, 4595119851,
}

// Score is the step from 0 to 99 that FGD gives to a placement which lets the
// fragment grow by delta (of Delta or DeltaOn of this mix): 100 times the
// logistic function of the loss in whole GPUs, cut to an integer. 50 stands for
// no change, more is better. The steps are part of what FGD is: nodes with the
// same step are equally good and the first of them in the canonical order is
// taken, which keeps other nodes whole.
//
// It is a table since the last bit of a floating-point exponential differs
// between processors, and would give two nodes different scores.
func (m *Mix) Score(delta int64) int {
	if m.weight == 0 {
		return 50 // nothing to measure by
	}
	if delta > 0 {
		return 99 - m.Score(-delta)
	}
	gain := -delta * scoreUnit
	return 49 + sort.Search(len(scoreSteps), func(i int) bool { return scoreSteps[i]*m.weight > gain })
}
