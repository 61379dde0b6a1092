// Package output renders what a command found: a table for people, JSON, YAML
// or bare names for programs. Data goes to one writer (stdout); progress and
// errors are written elsewhere by the caller.
//
//	t := output.Table{
//		Columns: []output.Column{{Title: "ID"}, {Title: "Status"}, {Title: "Owner", Wide: true}},
//		Rows:    rows,          // one string per column
//		Names:   ids,           // what -o name prints
//		Value:   tasks,         // what -o json and yaml print
//	}
//	err := p.Table(t)
//
// Formats are part of the interface: columns may be added at the end, JSON
// fields may be added, nothing is renamed. Colours appear on a terminal only
// and never with NO_COLOR.
package output
