package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"raftkv/internal/testkit"
)

// put is a script of Python that sends a file with PUT by a library, in one of several ways, and prints the status.
const put = `import sys
library, way, url, file = sys.argv[1:]
data = open(file, 'rb').read()
body = {'bytes': data, 'file': open(file, 'rb'), 'generator': (part for part in (data[:9], data[9:]))}[way]
if library == 'requests':
    import requests
    print(requests.put(url, data=body).status_code)
elif library == 'urllib3':
    import urllib3
    print(urllib3.PoolManager().request('PUT', url, body=body).status)
elif library == 'urllib':
    import urllib.error, urllib.request
    try:
        print(urllib.request.urlopen(urllib.request.Request(url, data=body, method='PUT')).status)
    except urllib.error.HTTPError as e:
        print(e.code)
else:
    import http.client, urllib.parse
    at = urllib.parse.urlsplit(url)
    c = http.client.HTTPConnection(at.netloc)
    c.request('PUT', at.path + '?' + at.query, body)
    print(c.getresponse().status)
`

// TestClientLibraries sends a value to a follower with the clients of docs/http.md that are there: with a redirect it
// is stored whole or the key is as it was, as the page has it, and with forwarding it is stored.
func TestClientLibraries(t *testing.T) {
	slow(t)
	t.Parallel()
	const stored, kept = true, false
	value := strings.Repeat("v", 99991)
	dir := t.TempDir()
	file, script := filepath.Join(dir, "value"), filepath.Join(dir, "put.py")
	if err := errors.Join(os.WriteFile(file, []byte(value), 0o600), os.WriteFile(script, []byte(put), 0o600)); err != nil {
		t.Fatal(err)
	}
	curl := func(more ...string) []string {
		return append([]string{"curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}", "URL"}, more...)
	}
	python := func(library, way string) []string { return []string{"python3", script, library, way, "URL", file} }
	fetch := func(body string) []string {
		return []string{"node", "-e", "fetch('URL', {method: 'PUT', duplex: 'half', body: " + body +
			"}).then(r => console.log(r.status))"}
	}
	bytes, stream := "require('fs').readFileSync('"+file+"')", "require('fs').createReadStream('"+file+"')"
	for _, mode := range []string{"redirect", "forward"} {
		nodes := testkit.StartCluster(t, binary(t), 3, "HTTP_FOLLOWERS="+mode)
		for i, tt := range []struct {
			argv  []string
			needs string // a module of Python
			want  bool   // with a redirect
		}{
			{argv: curl("-T", file), want: kept},
			{argv: curl("-L", "-T", file), want: stored},
			{argv: curl("-L", "-T", "-"), want: stored},
			{argv: curl("-L", "-X", "PUT", "--data-binary", "@"+file), want: stored},
			{argv: []string{"wget", "-qO-", "--method=PUT", "--body-file=" + file, "URL"}, want: stored},
			{argv: python("urllib", "bytes"), want: kept},
			{argv: python("http.client", "bytes"), want: kept},
			{argv: python("requests", "bytes"), needs: "requests", want: stored},
			{argv: python("requests", "file"), needs: "requests", want: stored},
			{argv: python("requests", "generator"), needs: "requests", want: kept},
			{argv: python("urllib3", "bytes"), needs: "urllib3", want: stored},
			{argv: python("urllib3", "generator"), needs: "urllib3", want: kept},
			{argv: fetch(bytes + ".toString()"), want: stored},
			{argv: fetch(stream), want: kept},
		} {
			name := strings.NewReplacer(dir, "", "\n", " ").Replace(strings.Join(tt.argv, " "))
			if mode == "forward" && tt.want == stored { // seen with a redirect, which is harder
				continue
			}
			if !there(tt.argv[0], tt.needs) {
				t.Logf("not tried, as it is not installed: %s", name)
				continue
			}
			key := fmt.Sprint("k", i)
			testkit.UnderOneLeader(t, nodes, func(leader *testkit.Node, others []*testkit.Node) error {
				leader.Set(t, key, "before")
				url := others[0].Base + "/set?key=" + key
				var argv []string
				for _, argument := range tt.argv {
					argv = append(argv, strings.ReplaceAll(argument, "URL", url))
				}
				cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
				cmd.Stdin = strings.NewReader(value)
				out, err := cmd.CombinedOutput()
				want := "before"
				if tt.want == stored || mode == "forward" {
					want = value
				}
				if got := leader.Definite(t, "GET", "/get?key="+key, "").Body; got != want {
					return fmt.Errorf("%s: %s: got %.20q of %d bytes, want %.20q of %d; it printed %.200q, %v", mode, name, got,
						len(got), want, len(want), out, err)
				}
				return nil
			})
		}
		testkit.CheckReplicas(t, nodes...)
	}
}

// there reports whether a program is installed and, if it is Python, whether it has a module.
func there(program, module string) bool {
	if _, err := exec.LookPath(program); err != nil {
		return false
	}
	return module == "" || exec.Command(program, "-c", "import "+module).Run() == nil
}
