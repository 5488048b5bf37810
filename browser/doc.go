// Package browser tests the node's page in a real browser: Chromium, driven by chromedp. It is a module of its own, so
// that the node does not carry what only these tests need.
package browser
