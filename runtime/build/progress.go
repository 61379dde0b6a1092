package build

import (
	"regexp"
	"strconv"
	"strings"
)

// Phases of a Bootstrap, in order.
const (
	PhaseIndex    = "index"    // package lists
	PhaseDownload = "download" // Done, Total in bytes
	PhaseInstall  = "install"  // Done, Total in packages; a part is downloaded in between
	PhaseTrim     = "trim"
	PhaseDone     = "done"
)

// Progress of a Bootstrap. Total grows when the tool finds that more is to do,
// 0 means not known.
type Progress struct {
	Phase       string
	Done, Total int64
}

// parser understands what apt and dpkg print in the C locale.
type parser struct {
	report     func(Progress)
	phase      string
	bytes, all int64 // downloaded, to download
	pkgs, want int64 // dpkg steps done and to do: unpack and set up
}

// newParser begins with the package lists, which come first in every run.
func newParser(report func(Progress)) *parser {
	report(Progress{Phase: PhaseIndex})
	return &parser{report: report, phase: PhaseIndex}
}

var (
	reNeed = regexp.MustCompile(`^Need to get (?:[\d.,]+ ?[kMG]?B/)?([\d.,]+ ?[kMG]?B) of archives`)
	reGet  = regexp.MustCompile(`^Get:\d+ .*\[([\d.,]+ ?[kMG]?B)\]$`)
	reNew  = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)
)

func (p *parser) line(l string) {
	switch {
	case reNew.MatchString(l):
		n, _ := strconv.ParseInt(reNew.FindStringSubmatch(l)[1], 10, 64)
		p.want += 2 * n
	case reNeed.MatchString(l):
		p.all += size(reNeed.FindStringSubmatch(l)[1])
		p.phase = PhaseDownload
		p.say()
	case p.phase != PhaseIndex && reGet.MatchString(l):
		p.bytes += size(reGet.FindStringSubmatch(l)[1])
		p.phase = PhaseDownload
		p.say()
	case p.want > 0 && (strings.HasPrefix(l, "Unpacking ") || strings.HasPrefix(l, "Setting up ")):
		p.pkgs++
		p.phase = PhaseInstall
		p.say()
	}
}

func (p *parser) say() {
	if p.phase == PhaseDownload {
		p.report(Progress{Phase: p.phase, Done: min(p.bytes, p.all), Total: p.all})
		return
	}
	p.report(Progress{Phase: p.phase, Done: min(p.pkgs, p.want), Total: p.want})
}

// size reads apt's sizes, "29.7 MB"; its units are decimal.
func size(s string) int64 {
	num := strings.TrimRight(s, " kMGB")
	f, err := strconv.ParseFloat(strings.ReplaceAll(num, ",", ""), 64)
	if err != nil {
		return 0
	}
	switch unit := strings.TrimSpace(s[len(num):]); unit {
	case "kB":
		f *= 1e3
	case "MB":
		f *= 1e6
	case "GB":
		f *= 1e9
	}
	return int64(f)
}
