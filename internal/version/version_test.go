package version

import (
	"runtime/debug"
	"testing"
)

func TestOf(t *testing.T) {
	setting := func(key, value string) debug.BuildSetting { return debug.BuildSetting{Key: key, Value: value} }
	revision := setting("vcs.revision", "3e561d2c0ffee0123456789abcdef0123456789a")
	for _, tt := range []struct {
		name     string
		module   string
		settings []debug.BuildSetting
		want     string
	}{
		{name: "go install of a tag", module: "v1.2.3", want: "v1.2.3"},
		{name: "go build of a tag", module: "v1.2.3-rc.1", settings: []debug.BuildSetting{revision}, want: "v1.2.3-rc.1"},
		{name: "commit without a tag", module: "v0.0.0-20261123141745-3e561d2c0ffe",
			settings: []debug.BuildSetting{revision, setting("vcs.modified", "false")}, want: "3e561d2c0ffe"},
		{name: "commit behind a tag, changed", module: "v1.2.4-0.20261123141745-3e561d2c0ffe+dirty",
			settings: []debug.BuildSetting{revision, setting("vcs.modified", "true")}, want: "3e561d2c0ffe-dirty"},
		{name: "no module version", module: "(devel)", settings: []debug.BuildSetting{revision}, want: "3e561d2c0ffe"},
		{name: "go run", module: "(devel)", want: "devel"},
		{name: "nothing", want: "devel"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: tt.module}, Settings: tt.settings}
		if got := of(info); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
