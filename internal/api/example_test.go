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
	r.Header.Set("If-Match", "*")
	c, err := api.Set(r, api.History{Mark: "93e28155"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range c.Pairs {
		fmt.Printf("%s=%s if all exist: %t\n", p.Key, p.Value, c.Match.Any)
	}
	// Output:
	// a=1 if all exist: true
	// b=2 if all exist: true
}

// An error is one line for the client: what is wrong, and what would be right.
func ExampleErrorf() {
	_, err := api.Remove(httptest.NewRequest(http.MethodGet, "/remove?kye=a", nil), api.History{})
	fmt.Println(err)
	// Output: "kye": unknown parameter; /remove takes key, prefix
}
