package output

import "strings"

// Style paints text. The zero value paints nothing.
type Style struct {
	Color bool
	// ASCII avoids block characters, for locales that are not UTF-8.
	ASCII bool
}

func (s Style) sgr(code, text string) string {
	if !s.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Bold and the other methods give text in that look, or as it is.
func (s Style) Bold(t string) string   { return s.sgr("1", t) }
func (s Style) Dim(t string) string    { return s.sgr("2", t) }
func (s Style) Red(t string) string    { return s.sgr("31", t) }
func (s Style) Green(t string) string  { return s.sgr("32", t) }
func (s Style) Yellow(t string) string { return s.sgr("33", t) }
func (s Style) Cyan(t string) string   { return s.sgr("36", t) }

// Status colours the states of tasks, containers, nodes, candidates and checks.
func (s Style) Status(t string) string {
	switch strings.ToUpper(t) {
	case "COMPLETE", "READY", "CHOSEN", "OK", "YES", "ACTIVE":
		return s.Green(t)
	case "RUNNING", "STARTING", "BID", "JOINING":
		return s.Cyan(t)
	case "PENDING", "RETRY", "DRAINING", "WARN", "STOPPING", "WARNING", "NO ANSWER":
		return s.Yellow(t)
	case "ERROR", "TIMEOUT", "CANCELLED", "UNREACHABLE", "DOWN", "FAIL", "REFUSED":
		return s.Red(t)
	case "NOT ASKED", "NO", "INACTIVE":
		return s.Dim(t)
	}
	return t
}

// PaintStatus is Status as a Column's Paint.
func PaintStatus(s Style, t string) string { return s.Status(t) }
