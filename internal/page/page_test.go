package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

// TestSize: the page is one file that a node carries without notice, and asks nobody else for anything.
func TestSize(t *testing.T) {
	if got := len(pageHTML); got > 40<<10 {
		t.Errorf("the page has %d bytes, want 40 KiB at most", got)
	}
	for _, html := range [][]byte{pageHTML, relayHTML} {
		for _, bad := range []string{"src=\"", "style=\"", "innerHTML", "eval(", "insertAdjacentHTML", "document.write"} {
			if i := bytes.Index(html, []byte(bad)); i >= 0 {
				t.Errorf("got %q in a page, want none: …%s", bad, html[i:min(i+60, len(html))])
			}
		}
	}
}

// TestPolicy: a page's own script and style are let in by their hashes, and nothing else is.
func TestPolicy(t *testing.T) {
	html := []byte("<style>a{}</style><p>x</p><script>\nf()\n</script>")
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	got := policy(html)
	for _, want := range []string{"default-src 'none'", "base-uri 'none'", "form-action 'none'",
		"script-src " + hash("\nf()\n"),
		"style-src " + hash("a{}")} {
		if !strings.Contains(got, want) {
			t.Errorf("got %s, want it to have %s", got, want)
		}
	}
	if strings.Contains(got, "unsafe") {
		t.Errorf("got %s, want nothing unsafe", got)
	}
	if p := policy(relayHTML); strings.Contains(p, "style-src") || !strings.Contains(p, "script-src 'sha256-") {
		t.Errorf("relay: got %s, want one script and no style", p)
	}
}
