package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"raftkv/internal/kv"
)

// TestSlowReaderIsGivenUp: when the data have changed by more than the limit, an answer that a client does not read
// breaks off, in the middle of a write, and so that it can't be taken for all. Up to the limit it goes on.
func TestSlowReaderIsGivenUp(t *testing.T) {
	for name, write := range map[string]func(http.ResponseWriter, *http.Request, *kv.Store) error{
		"list": func(w http.ResponseWriter, _ *http.Request, view *kv.Store) error {
			return WriteList(w, view, ListRequest{}, testHistory)
		},
		"snapshot": WriteSnapshot,
	} {
		for _, changed := range []int{16, 48} {
			t.Run(fmt.Sprint(name, ", ", changed, " MiB changed"), func(t *testing.T) {
				const limit = 32 << 20
				store := kv.New()
				value := make([]byte, 1<<20)
				for i := range value {
					value[i] = 'v'
				}
				store.Update(1, 1, nil, func(tx *kv.Tx) {
					for i := range 64 {
						tx.Set(fmt.Sprintf("key%02d", i), value)
					}
				})
				finished := make(chan error, 1)
				server := serve(t, func(w http.ResponseWriter, r *http.Request) {
					view, w, release := Version(w, store, limit)
					defer release()
					err := write(w, r, view)
					finished <- err
					if err != nil {
						panic(http.ErrAbortHandler)
					}
				})
				response, err := http.Get(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = response.Body.Close() }()
				if _, err := io.ReadFull(response.Body, make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				for i := range changed {
					store.Update(uint64(i)+2, 1, nil, func(tx *kv.Tx) { tx.Set("key00", value) })
				}
				givenUp := changed<<20 > limit
				if givenUp { // although nothing is read
					if err := <-finished; !errors.Is(err, errTooSlow) {
						t.Errorf("got %v, want errTooSlow", err)
					}
				}
				n, err := io.Copy(io.Discard, response.Body)
				if (err != nil) != givenUp {
					t.Errorf("got %d bytes, %v, want that it breaks off: %v", n, err, givenUp)
				}
				if !givenUp {
					if err := <-finished; err != nil || n < 64<<20 {
						t.Errorf("got %d bytes, %v, want all", n, err)
					}
				}
			})
		}
	}
}
