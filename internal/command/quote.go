package command

import "strconv"

// shown is how many bytes of a key or value people are shown.
const shown = 64

// AppendQuoted appends s quoted and escaped, so that no key or value can forge a
// line, and cut to 64 bytes, with the full length behind it.
func AppendQuoted[S string | []byte](dst []byte, s S) []byte {
	if len(s) <= shown {
		return strconv.AppendQuote(dst, string(s))
	}
	dst = strconv.AppendQuote(dst, string(s[:shown]))
	dst = append(dst, "...("...)
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	return append(dst, " bytes)"...)
}
