// Package version tells which version of the program runs. go build records it: nothing has
// to be passed to the linker.
package version

import (
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
)

// String returns the tag of the module, or else its commit, with -dirty behind it if files
// had been changed since, or else devel: go test and go run record neither.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return of(info)
}

// pseudo is in a version that go build has made from a commit, as there was no tag.
var pseudo = regexp.MustCompile(`[0-9]{14}-[0-9a-f]{12}`)

func of(info *debug.BuildInfo) string {
	if v := info.Main.Version; strings.HasPrefix(v, "v") && !pseudo.MatchString(v) {
		return v
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	switch {
	case revision == "":
		return "devel"
	case settings["vcs.modified"] == "true":
		return fmt.Sprintf("%.12s-dirty", revision)
	}
	return fmt.Sprintf("%.12s", revision)
}
