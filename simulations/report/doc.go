// Package report draws results as one HTML page that needs nothing else: no
// network, no script, light and dark, wide and narrow screens.
//
//	err := report.Write(w, report.Page{Records: file.Records, Versions: file.Versions(), Log: file.Log, Experiments: all})
//
// Its text is for people who look rather than read: what was run, a table with
// the best policy of every metric marked, curves with a band of one standard
// deviation over seeds, and the commands that make it again. Plot and Bars draw
// SVG and know nothing of results. Output depends on the input alone.
package report
