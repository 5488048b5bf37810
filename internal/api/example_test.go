package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"raftkv/internal/api"
)

// A form and a query together make one command, which is applied in one entry of the log.
func ExampleSet() {
	r := httptest.NewRequest(http.MethodPost, "/set?key=a&value=1", strings.NewReader("key=b&value=2"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("If-Match", `"12"`)
	c, err := api.Set(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range c.Pairs {
		fmt.Printf("%s=%s if it was last set at %v\n", p.Key, p.Value, c.Match.Indexes)
	}
	// Output:
	// a=1 if it was last set at [12]
	// b=2 if it was last set at [12]
}

// An error is one line for the client: what is wrong, and what would be right.
func ExampleErrorf() {
	_, err := api.Remove(httptest.NewRequest(http.MethodGet, "/remove?kye=a", nil))
	fmt.Println(err)
	// Output: "kye": unknown parameter; /remove takes key, prefix
}
