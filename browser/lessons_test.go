package browser

import (
	"path/filepath"
	"strconv"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestKeptLessons plays the files of docs/lessons on the page as a file, without any node: their stories are in them.
func TestKeptLessons(t *testing.T) {
	t.Parallel()
	path, err := filepath.Abs("../internal/page/page.html")
	if err != nil {
		t.Fatal(err)
	}
	p := openURL(t, startChromium(t), "a file", "file://"+path, []string{"file://" + path})
	for _, tt := range []struct{ file, moment, there string }{
		{file: "1-election", moment: `$('head').innerText.startsWith('n1 leads')`,
			there: `/^n[23] leads/.test($('head').innerText) && nodes.get('n1').frame.state === 'Follower'`},
		{file: "4-two-leaders",
			moment: `nodes.get('n1').frame.cuts && sorted().some(n => n.id !== 'n1' && n.frame.state === 'Leader')`,
			there:  `!nodes.get('n1').frame.cuts && new Set(sorted().map(n => n.frame.leader)).size === 1`},
		{file: "7-snapshot", moment: `sorted().some(n => n.frame.snapshot > 0)`,
			there: `sorted().length === 4 && sorted().every(n => n.frame && n.frame.applied === nodes.get('n1').frame.applied)`},
	} {
		kept, err := filepath.Abs("../docs/lessons/" + tt.file + ".jsonl")
		if err != nil {
			t.Fatal(err)
		}
		p.do(chromedp.SetUploadFiles(`#file`, []string{kept}, chromedp.ByQuery))
		p.wait(tt.file+": its end", `playing && $('slider').value === $('slider').max && (`+tt.there+`)`)
		at := get[int](p, `playing.all.findIndex((_, k) => { seek(k); return sorted().length >= 3 &&
			sorted().every(n => n.frame) && Boolean(`+tt.moment+`); })`)
		if at < 0 {
			t.Errorf("%s: no moment with %s", tt.file, tt.moment)
			continue
		}
		// A link to that moment, and a move of the slider, which makes one.
		p.do(chromedp.Evaluate(`seek(0); location.hash = '#from=' + playing.all[`+strconv.Itoa(at)+`].at`, nil))
		p.wait(tt.file+": the moment of a link",
			`+$('slider').value > 0 && playing.time === playing.all[`+strconv.Itoa(at)+`].at`)
		p.do(chromedp.Evaluate(`$('slider').value = 3; $('slider').dispatchEvent(new Event('input'))`, nil))
		p.wait(tt.file+": the link of a moment", `location.hash === '#from=' + playing.all[3].at`)
		p.do(chromedp.Evaluate(`history.replaceState(null, '', '#')`, nil))
	}
	p.do(chromedp.Evaluate(`location.hash = '#from=2000-01-01T00:00:00Z'`, nil))
	p.wait("the first moment of all", `+$('slider').value === 0`)
}
