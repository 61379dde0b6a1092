package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// junitFile is the part of pytest's report that we read.
type junitFile struct {
	Suites []struct {
		Cases []junitCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type junitCase struct {
	Class   string      `xml:"classname,attr"`
	Name    string      `xml:"name,attr"`
	Seconds float64     `xml:"time,attr"`
	Failure []junitText `xml:"failure"`
	Error   []junitText `xml:"error"`
	Skipped []junitText `xml:"skipped"`
}

type junitText struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// readJUnit reports every test of a JUnit file. A test that failed and then
// failed in its clean-up stands there twice but counts once.
func readJUnit(in io.Reader, r *report) error {
	var f junitFile
	if err := xml.NewDecoder(in).Decode(&f); err != nil {
		return fmt.Errorf("read test report: %w", err)
	}
	type key struct{ class, name string }
	var order []key
	worst := map[key]result{}
	for _, s := range f.Suites {
		for _, c := range s.Cases {
			x := result{Name: strings.TrimSpace(c.Class + " " + c.Name), Took: time.Duration(c.Seconds * float64(time.Second))}
			switch bad := append(c.Failure, c.Error...); {
			case len(bad) > 0:
				x.State = failed
				for _, b := range bad {
					x.Output += b.Text + "\n"
				}
			case len(c.Skipped) > 0:
				x.State, x.Reason = skipped, c.Skipped[0].Message
			}
			k := key{c.Class, c.Name}
			old, seen := worst[k]
			if !seen {
				order = append(order, k)
			}
			if !seen || old.State != failed {
				worst[k] = x
			}
		}
	}
	for _, k := range order {
		r.add(worst[k])
	}
	return nil
}
