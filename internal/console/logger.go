package console

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// Format returns the formatter of a node's lines: logrus' own for "json", and Formatter otherwise.
func Format(name string) logrus.Formatter {
	if name == "json" {
		return &logrus.JSONFormatter{TimestampFormat: timeFormat, DisableHTMLEscape: true}
	}
	return Formatter{}
}

// NewLogger returns the logger of a node, which prints lines of at least level to out, in format.
func NewLogger(out io.Writer, level string, format logrus.Formatter) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(out)
	log.SetFormatter(format)
	if l, err := logrus.ParseLevel(level); err == nil { // parseConfig has checked it
		log.SetLevel(l)
	}
	return log
}

// Fatal prints the last line of a process that err ends, with advice behind it: one line, in the format of the given
// name.
func Fatal(out io.Writer, format string, err error, advice string) {
	message := strings.ReplaceAll(err.Error(), "\n", "; ") + advice
	if format != "json" {
		_, _ = fmt.Fprintf(out, "raftkv: %s\n", message)
		return
	}
	line, _ := Format(format).Format(&logrus.Entry{Time: time.Now(), Level: logrus.FatalLevel, Message: message})
	_, _ = out.Write(line)
}
