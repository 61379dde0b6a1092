package cli

import "strings"

// shellLine quotes KEY=VALUE for a POSIX shell when the value needs it: parts
// of it come from a node, and people will eval it.
func shellLine(kv string) string {
	key, value, _ := strings.Cut(kv, "=")
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/:@%+,", r)
	}
	if value != "" && strings.IndexFunc(value, func(r rune) bool { return !plain(r) }) < 0 {
		return kv
	}
	return key + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
