package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestLabRequests: what the lab takes, from clients on this machine alone.
func TestLabRequests(t *testing.T) {
	for _, test := range []struct {
		query string
		want  LabRequest
	}{
		{query: "do=cut", want: LabRequest{Do: "cut", From: "", Out: true, In: true}},
		{query: "do=cut&from=n2", want: LabRequest{Do: "cut", From: "n2", Out: true, In: true}},
		{query: "do=cut&from=n2&way=both", want: LabRequest{Do: "cut", From: "n2", Out: true, In: true}},
		{query: "do=cut&from=n2&way=out", want: LabRequest{Do: "cut", From: "n2", Out: true, In: false}},
		{query: "do=cut&way=in", want: LabRequest{Do: "cut", From: "", Out: false, In: true}},
	} {
		r := httptest.NewRequest(http.MethodGet, "/lab?"+test.query, nil)
		r.RemoteAddr = "127.0.0.1:1234"
		if got, err := Lab(r); err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v", test.query, got, err, test.want)
		}
	}
	for name, change := range map[string]func(r *http.Request){
		"another machine":  func(r *http.Request) { r.RemoteAddr = "192.0.2.1:1234" },
		"X-Forwarded-For":  func(r *http.Request) { r.Header.Set("X-Forwarded-For", "127.0.0.1") },
		"Forwarded header": func(r *http.Request) { r.Header.Set("Forwarded", "for=127.0.0.1") },
	} {
		r := httptest.NewRequest(http.MethodGet, "/lab?do=kill", nil)
		r.RemoteAddr = "127.0.0.1:1234"
		change(r)
		_, err := Lab(r)
		refused, ok := errors.AsType[Error](err)
		if !ok || refused.Status != http.StatusForbidden || !strings.Contains(refused.Message, "without a proxy") {
			t.Errorf("%s: got %v, want 403", name, err)
		}
	}
}

// TestIsLoopback: what reaches this machine alone.
func TestIsLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"": true, "127.0.0.1:8000": true, "[::1]:8000": true, "localhost:8000": true, "127.0.0.2": true, "::1": true,
		"http://127.0.0.1:8000": true, "https://localhost": true, "LOCALHOST": true,
		"0.0.0.0:8000": false, "[::]:8000": false, ":8000": false, "10.0.0.1:8000": false, "localhost.example": false,
		"http://kv.example": false, "http://10.0.0.1:8000": false,
	} {
		if got := IsLoopback(address); got != want {
			t.Errorf("%q: got %t, want %t", address, got, want)
		}
	}
}
