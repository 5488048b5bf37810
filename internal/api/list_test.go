package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/kv"
)

// recorder is an httptest.ResponseRecorder that takes deadlines.
type recorder struct{ *httptest.ResponseRecorder }

func newRecorder() recorder { return recorder{httptest.NewRecorder()} }

func (recorder) SetWriteDeadline(time.Time) error { return nil }

// TestListOptions compares lists with any options with what a plain filter of all keys makes of them.
func TestListOptions(t *testing.T) {
	all := []string{"a", "a1", "a2", "a\xff", "a\xff\xff", "a\ufffd", "b", "b1", "\xff", "\xff\xff"}
	s := kv.New()
	s.Update(1, 1, nil, func(tx *kv.Tx) {
		for _, key := range all {
			tx.Set(key, []byte("value of "+key))
		}
	})
	slices.Sort(all)
	bounds := append([]string{"", "a0", "a\xff\x00", "c", "\xff\xff\xff"}, all...)
	for _, prefix := range []string{"", "a", "a\xff", "a\ufffd", "\ufffd", "b", "\xff", "x"} {
		for _, after := range bounds {
			for _, until := range bounds {
				for _, limit := range []int{0, 1, 3} {
					for _, reverse := range []bool{false, true} {
						q := ListRequest{Prefix: prefix, After: after, Until: until, Limit: limit, Reverse: reverse, Keys: true}
						var want []string
						for _, key := range all {
							behind := after == "" || key > after && !reverse || key < after && reverse
							if strings.HasPrefix(key, prefix) && behind && (until == "" || key < until) {
								want = append(want, key)
							}
						}
						if reverse {
							slices.Reverse(want)
						}
						more := limit > 0 && len(want) > limit
						if more {
							want = want[:limit]
						}
						w := newRecorder()
						if err := WriteList(w, s, q, History{Mark: "m"}); err != nil {
							t.Fatal(err)
						}
						got := keysOfLines(t, w.Body)
						if gotMore := w.Header().Get("Raftkv-More") == "yes"; !slices.Equal(got, want) || gotMore != more {
							t.Errorf("%+v: got %q, more: %t; want %q, %t", q, got, gotMore, want, more)
						}
						w = newRecorder()
						q.Count, q.Limit = true, 0
						_ = WriteList(w, s, q, History{Mark: "m"})
						if got := w.Body.String(); limit == 0 && got != fmt.Sprintf("{\"count\":%d}\n", len(want)) {
							t.Errorf("%+v: got %q, want a count of %d", q, got, len(want))
						}
					}
				}
			}
		}
	}
}

// keysOfLines returns the keys of a list that has no values.
func keysOfLines(t *testing.T, lines *bytes.Buffer) (keys []string) {
	t.Helper()
	for d := json.NewDecoder(lines); d.More(); {
		var line struct {
			Key            string
			Key64          []byte
			Value, Value64 *string
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Value != nil || line.Value64 != nil {
			t.Errorf("got a value with %s, want none", line.Key)
		}
		keys = append(keys, line.Key+string(line.Key64))
	}
	return keys
}

func TestListRefused(t *testing.T) {
	for _, tt := range []struct{ name, query, refused string }{
		{name: "neither yes nor no", query: "reverse=1", refused: "reverse: want yes or no"},
		{name: "twice", query: "count=yes&count=yes", refused: "count: given 2 times"},
		{name: "values", query: "values=", refused: "values: want yes or no"},
		{name: "two ends", query: "until=a&until=b", refused: "until: given 2 times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := List(httptest.NewRequest(http.MethodGet, "/list?"+tt.query, nil))
			if err == nil || !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("got %v, want %q in it", err, tt.refused)
			}
		})
	}
}

// TestGetSeveral: keys in the order of the request, from one view, also those that are not there.
func TestGetSeveral(t *testing.T) {
	s := kv.New()
	s.Update(1, 1, nil, func(tx *kv.Tx) { tx.Set("a", []byte("1")); tx.Set("\xff", nil) })
	w := newRecorder()
	if err := WriteItems(w, s, []string{"none", "\xff", "a"}); err != nil {
		t.Fatal(err)
	}
	const want = `{"key":"none","found":false}` + "\n" + `{"key64":"/w==","value":"","index":1}` + "\n" +
		`{"key":"a","value":"1","index":1}` + "\n"
	if got := w.Body.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for query, refused := range map[string]string{
		"key=a&key=a": `"a" is given twice`, "key=a&key=": "key: empty", "": "key: missing",
		strings.Repeat("key=k&", maxGet+1): "is given twice",
	} {
		if _, _, err := Get(httptest.NewRequest(http.MethodGet, "/get?"+query, nil)); err == nil ||
			!strings.Contains(err.Error(), refused) {
			t.Errorf("%.40s: got %v, want %q in it", query, err, refused)
		}
	}
	many := make(url.Values)
	for i := range maxGet + 1 {
		many.Add("key", fmt.Sprint(i))
	}
	if _, _, err := Get(httptest.NewRequest(http.MethodGet, "/get?"+many.Encode(), nil)); err == nil ||
		!strings.Contains(err.Error(), "key: 1025 given; 1024 at most") {
		t.Errorf("too many: got %v", err)
	}
	r := httptest.NewRequest(http.MethodGet, "/get?key=a&key=b", nil)
	r.Header.Set("If-Match", `"1-m"`)
	if _, _, err := Get(r); err == nil || !strings.Contains(err.Error(), "If-Match: not supported") {
		t.Errorf("with a condition: got %v, want it refused", err)
	}
}

func TestWatchOfOneKey(t *testing.T) {
	s := kv.New()
	q, err := Watch(httptest.NewRequest(http.MethodGet, "/watch?key=a&from=0", nil), History{Mark: "m"})
	if err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(tx *kv.Tx){
		func(tx *kv.Tx) { tx.Set("a", []byte("1")); tx.Set("a1", nil); tx.Set("b", nil) },
		func(tx *kv.Tx) { tx.Set("a1", nil) },
		func(tx *kv.Tx) { tx.Remove("a") },
	} {
		s.Update(uint64(i+1), 1, nil, change)
	}
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = q.Serve(r.Context(), t.Context(), w, s, time.Hour)
	})
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got []string
	for lines := bufio.NewScanner(response.Body); len(got) < 2 && lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), `data: {"index"`); ok {
			got = append(got, data)
		}
	}
	want := []string{`:1,"term":1,"changes":[{"op":"set","key":"a","value":"1"}]}`,
		`:3,"term":1,"changes":[{"op":"remove","key":"a"}]}`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := Watch(httptest.NewRequest(http.MethodGet, "/watch?key=a&prefix=a", nil), History{}); err == nil {
		t.Error("a key and a prefix: got no error, want one")
	}
}
