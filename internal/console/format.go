package console

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
)

// Formatter prints what logrus prints on a terminal, INFO[time] message, also
// where there is none, without quoting what the message quotes itself.
type Formatter struct{}

// Format implements logrus.Formatter.
func (Formatter) Format(e *logrus.Entry) ([]byte, error) {
	line := AppendPrefix(nil, e.Time, e.Level)
	line = append(line, e.Message...)
	return append(line, '\n'), nil
}

// AppendPrefix appends the beginning of a console line.
func AppendPrefix(line []byte, now time.Time, level logrus.Level) []byte {
	name := strings.ToUpper(level.String())
	line = append(line, name[:4]...)
	line = append(line, '[')
	line = now.AppendFormat(line, "2006-01-02T15:04:05.000Z0700")
	return append(line, "] "...)
}

// AppendCommand appends the console lines of what c did: one for each key, for
// instance set key="1" value="1" index=12 term=2.
func AppendCommand(line, prefix []byte, c command.Command, r command.Result, index, term uint64) []byte {
	begin := func() {
		line = append(line, prefix...)
		switch {
		case r.Reused:
			line = append(line, "refused, Idempotency-Key of another request: "...)
		case r.Index != index:
			line = fmt.Appendf(line, "done before, index=%d: ", r.Index)
		case r.Failed != 0:
			line = append(line, "condition failed: "...)
		}
	}
	end := func() {
		line = append(line, " index="...)
		line = strconv.AppendUint(line, index, 10)
		line = append(line, " term="...)
		line = strconv.AppendUint(line, term, 10)
		line = append(line, '\n')
	}
	set := func(key string, value []byte) {
		begin()
		line = append(line, "set key="...)
		line = command.AppendQuoted(line, key)
		line = append(line, " value="...)
		line = command.AppendQuoted(line, value)
		end()
	}
	remove := func(key string) {
		begin()
		line = append(line, "remove key="...)
		line = command.AppendQuoted(line, key)
		end()
	}
	switch c.Kind {
	case command.Set:
		for _, p := range c.Pairs {
			set(p.Key, p.Value)
		}
		return line
	case command.Remove:
		for _, p := range c.Pairs {
			remove(p.Key)
		}
		return line
	case command.Txn:
		begin()
		line = fmt.Appendf(line, "transaction conditions=%d held=%t", len(c.Txn.If), r.Txn != nil && r.Txn.Held)
		end()
		for _, o := range c.Txn.Branch(r) {
			switch o.Op {
			case command.OpSet:
				set(o.Key, o.Value)
			case command.OpRemove:
				remove(o.Key)
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
	case command.Stage, command.StageRecords:
		begin()
		line = fmt.Appendf(line, "stage %d of a restore", len(c.Pairs))
	case command.Restore:
		begin()
		line = fmt.Appendf(line, "restore keys=%d complete=%t", c.Items, r.Counted)
	case command.RaiseFormat:
		begin()
		line = fmt.Appendf(line, "cluster format %d", c.To)
	}
	end()
	return line
}
