package console

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
)

// Formatter prints what logrus prints on a terminal, INFO[time] message, also
// where there is none, without quoting what the message quotes itself.
type Formatter struct{}

// Format implements logrus.Formatter.
func (Formatter) Format(e *logrus.Entry) ([]byte, error) {
	line := appendTextPrefix(nil, e.Time, e.Level)
	line = append(line, e.Message...)
	return append(line, '\n'), nil
}

// timeFormat is that of the lines of both formats.
const timeFormat = "2006-01-02T15:04:05.000Z0700"

func appendTextPrefix(line []byte, now time.Time, level logrus.Level) []byte {
	name := strings.ToUpper(level.String())
	line = append(line, name[:4]...)
	line = append(line, '[')
	line = now.AppendFormat(line, timeFormat)
	return append(line, "] "...)
}

// Prefix is the beginning of a console line: level and time, in the format of the line.
type Prefix struct {
	// HideValues has the lines show how long values are in the place of what they are.
	HideValues bool

	json bool
	text []byte
}

// NewPrefix returns the beginning of lines in the format of a logger whose formatter is f: JSON if that is logrus' own
// for it, and text otherwise.
func NewPrefix(f logrus.Formatter, now time.Time, level logrus.Level) Prefix {
	if _, ok := f.(*logrus.JSONFormatter); !ok {
		return Prefix{text: appendTextPrefix(nil, now, level)}
	}
	line := fmt.Appendf(nil, `{"level":"%s","time":"`, level)
	line = now.AppendFormat(line, timeFormat)
	return Prefix{json: true, text: append(line, `","msg":`...)}
}

// AppendCommand appends the console lines of what c did: one for each key, for
// instance set key="1" value="1" index=12 term=2, with by=NAME if the client's is known.
func AppendCommand(line []byte, prefix Prefix, c command.Command, r command.Result, index, term uint64) []byte {
	if prefix.json {
		return appendCommandJSON(line, prefix, c, r, index, term)
	}
	return appendCommandText(line, prefix, c, r, index, term)
}

func appendCommandText(line []byte, prefix Prefix, c command.Command, r command.Result, index, term uint64) []byte {
	begin := func() {
		line = append(line, prefix.text...)
		switch {
		case r.Reused:
			line = append(line, "refused, Idempotency-Key of another request: "...)
		case r.Index != index:
			line = fmt.Appendf(line, "done before, index=%d: ", r.Index)
		case r.Failed != 0 || r.LeaseGone(&c):
			line = append(line, "condition failed: "...)
		}
	}
	by := func() {
		if c.By != "" {
			line = append(append(line, " by="...), c.By...)
		}
	}
	end := func() {
		line = append(line, " index="...)
		line = strconv.AppendUint(line, index, 10)
		line = append(line, " term="...)
		line = strconv.AppendUint(line, term, 10)
		line = append(line, '\n')
	}
	set := func(key string, value []byte, lease command.Lease) {
		begin()
		line = append(line, "set key="...)
		line = command.AppendQuoted(line, key)
		by()
		if prefix.HideValues {
			line = fmt.Appendf(line, " value=(%d bytes)", len(value))
		} else {
			line = append(line, " value="...)
			line = command.AppendQuoted(line, value)
		}
		if lease.TTL != 0 {
			line = fmt.Appendf(line, " ttl=%v", lease.TTL)
		}
		if lease.Key != "" {
			line = command.AppendQuoted(append(line, " lease="...), lease.Key)
		}
		end()
	}
	remove := func(what, key string) {
		begin()
		line = append(append(line, what...), " key="...)
		line = command.AppendQuoted(line, key)
		by()
		end()
	}
	switch c.Kind {
	case command.Set:
		for _, p := range c.Pairs {
			set(p.Key, p.Value, c.Lease())
		}
		return line
	case command.Remove:
		for _, p := range c.Pairs {
			remove("remove", p.Key)
		}
		return line
	case command.Txn:
		begin()
		line = fmt.Appendf(line, "transaction conditions=%d held=%t", len(c.Txn.If), r.Txn != nil && r.Txn.Held)
		by()
		end()
		for i, o := range c.Txn.Done(r) {
			switch o.Op {
			case command.OpSet:
				set(o.Key, o.Value, o.Lease)
			case command.OpRemove:
				remove("remove", o.Key)
			case command.OpTouch:
				remove("touch", o.Key)
			case command.OpRemoveRange:
				begin()
				line = command.AppendQuoted(append(line, "remove from="...), o.Key)
				line = command.AppendQuoted(append(line, " until="...), o.End)
				line = fmt.Appendf(line, " removed=%d", r.Txn.Operations[i].Removed)
				end()
			}
		}
		return line
	case command.Expire:
		for i, timed := range c.Txn.If {
			if r.Txn != nil && r.Txn.Operations[i].Found { // else it was set again
				remove("expire", timed.Key)
			}
		}
		return line
	case command.RemovePrefix:
		begin()
		line = append(line, "remove prefix="...)
		line = command.AppendQuoted(line, c.Pairs[0].Key)
		line = fmt.Appendf(line, " removed=%d", r.Removed)
	case command.Noop:
		begin()
		line = append(line, "no-op"...)
	case command.Unstage:
		begin()
		line = append(line, "begin or give up a restore"...)
	case command.Stage, command.StageRecords, command.StageLeases:
		begin()
		line = fmt.Appendf(line, "stage %d of a restore", len(c.Pairs))
	case command.Restore:
		begin()
		line = fmt.Appendf(line, "restore keys=%d complete=%t", c.Items, r.Counted)
	case command.RaiseFormat:
		begin()
		line = fmt.Appendf(line, "cluster format %d", c.To)
	}
	by()
	end()
	return line
}

// appendCommandJSON is AppendCommand for JSON, whose fields are those of the text, for instance
// {"level":"info","time":"2026-11-25T14:28:11.082Z","msg":"set","key":"1","value":"1","index":12,"term":2}.
func appendCommandJSON(line []byte, prefix Prefix, c command.Command, r command.Result, index, term uint64) []byte {
	begin := func(message string) {
		line = append(line, prefix.text...)
		line = strconv.AppendQuote(line, message)
		switch {
		case r.Reused:
			line = append(line, `,"outcome":"refused, Idempotency-Key of another request"`...)
		case r.Index != index:
			line = fmt.Appendf(line, `,"outcome":"done before","firstIndex":%d`, r.Index)
		case r.Failed != 0 || r.LeaseGone(&c):
			line = append(line, `,"outcome":"condition failed"`...)
		}
	}
	end := func() {
		if c.By != "" {
			line = appendField(line, "by", c.By)
		}
		line = fmt.Appendf(line, `,"index":%d,"term":%d}`+"\n", index, term)
	}
	set := func(key string, value []byte, lease command.Lease) {
		begin("set")
		line = appendField(line, "key", key)
		if prefix.HideValues {
			line = fmt.Appendf(line, `,"valueBytes":%d`, len(value))
		} else {
			line = appendField(line, "value", value)
		}
		if lease.TTL != 0 {
			line = fmt.Appendf(line, `,"ttl":"%v"`, lease.TTL)
		}
		if lease.Key != "" {
			line = appendField(line, "lease", lease.Key)
		}
		end()
	}
	remove := func(what, key string) {
		begin(what)
		line = appendField(line, "key", key)
		end()
	}
	switch c.Kind {
	case command.Set:
		for _, p := range c.Pairs {
			set(p.Key, p.Value, c.Lease())
		}
		return line
	case command.Remove:
		for _, p := range c.Pairs {
			remove("remove", p.Key)
		}
		return line
	case command.Txn:
		begin("transaction")
		line = fmt.Appendf(line, `,"conditions":%d,"held":%t`, len(c.Txn.If), r.Txn != nil && r.Txn.Held)
		end()
		for i, o := range c.Txn.Done(r) {
			switch o.Op {
			case command.OpSet:
				set(o.Key, o.Value, o.Lease)
			case command.OpRemove:
				remove("remove", o.Key)
			case command.OpTouch:
				remove("touch", o.Key)
			case command.OpRemoveRange:
				begin("remove range")
				line = appendField(appendField(line, "from", o.Key), "until", o.End)
				line = fmt.Appendf(line, `,"removed":%d`, r.Txn.Operations[i].Removed)
				end()
			}
		}
		return line
	case command.Expire:
		for i, timed := range c.Txn.If {
			if r.Txn != nil && r.Txn.Operations[i].Found { // else it was set again
				remove("expire", timed.Key)
			}
		}
		return line
	case command.RemovePrefix:
		begin("remove prefix")
		line = appendField(line, "prefix", c.Pairs[0].Key)
		line = fmt.Appendf(line, `,"removed":%d`, r.Removed)
	case command.Noop:
		begin("no-op")
	case command.Unstage:
		begin("begin or give up a restore")
	case command.Stage, command.StageRecords, command.StageLeases:
		begin("stage of a restore")
		line = fmt.Appendf(line, `,"pairs":%d`, len(c.Pairs))
	case command.Restore:
		begin("restore")
		line = fmt.Appendf(line, `,"keys":%d,"complete":%t`, c.Items, r.Counted)
	case command.RaiseFormat:
		begin("cluster format")
		line = fmt.Appendf(line, `,"format":%d`, c.To)
	default:
		begin(fmt.Sprintf("command of kind %d", c.Kind))
	}
	end()
	return line
}

// shown is how many bytes of a key or value a line has.
const shown = 64

// appendField appends a member of a JSON object: a key or value, cut to 64 bytes, with the full length in bytes as
// a member nameBytes behind it. One that is not UTF-8 is in base64, as a member name64.
func appendField[S string | []byte](line []byte, name string, s S) []byte {
	cut := string(s[:min(len(s), shown)])
	text := cut
	for range utf8.UTFMax - 1 { // the cut may be within a character
		if len(s) > shown && !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	line = fmt.Appendf(line, `,"%s`, name)
	if utf8.ValidString(text) {
		line = appendString(append(line, `":`...), text)
	} else {
		line = append(line, `64":"`...)
		line = append(base64.StdEncoding.AppendEncode(line, []byte(cut)), '"')
	}
	if len(s) > shown {
		line = fmt.Appendf(line, `,"%sBytes":%d`, name, len(s))
	}
	return line
}

// appendString appends s, which is UTF-8, as a JSON string. Unlike encoding/json it escapes all that does not print: a
// terminal obeys more than the control characters that JSON forbids.
func appendString(line []byte, s string) []byte {
	line = append(line, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			line = append(line, '\\', byte(r))
		case strconv.IsPrint(r):
			line = utf8.AppendRune(line, r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				line = fmt.Appendf(line, `\u%04x`, unit)
			}
		}
	}
	return append(line, '"')
}
