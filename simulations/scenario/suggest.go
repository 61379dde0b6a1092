package scenario

import "strings"

// Suggest is the hint for a word that is not one of names: the nearest of them
// if it may have been meant, else all of them.
func Suggest(word string, names []string) string {
	best, at := 3, -1 // three mistakes make it another word
	for i, n := range names {
		if d := distance(strings.ToLower(word), strings.ToLower(n)); d < best && d < len(n) {
			best, at = d, i
		}
	}
	if at >= 0 {
		return "did you mean \"" + names[at] + "\"?"
	}
	if len(names) == 0 {
		return "there is none"
	}
	return "there is " + strings.Join(names, ", ")
}

// distance counts the letters to change, add, drop or swap with the next to
// make b of a (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			change := 1
			if x[i-1] == y[j-1] {
				change = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(x)][len(y)]
}
