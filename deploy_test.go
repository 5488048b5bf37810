package main

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestDeployments: compose.yaml and deploy/statefulset.yaml are YAML, and start nodes with
// environments that a node takes, which differ where they must.
func TestDeployments(t *testing.T) {
	for _, tt := range []struct {
		file  string
		nodes int
	}{
		{file: "compose.yaml", nodes: 3},
		{file: "deploy/statefulset.yaml", nodes: 1},
	} {
		f, err := os.Open(tt.file)
		if err != nil {
			t.Fatal(err)
		}
		var environments []environment
		decoder := yaml.NewDecoder(f)
		for {
			var document any
			if err = decoder.Decode(&document); err != nil {
				break
			}
			environments = append(environments, environmentsIn(document)...)
		}
		_ = f.Close()
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v, want YAML", tt.file, err)
		}
		if len(environments) != tt.nodes {
			t.Errorf("%s: got %d nodes, want %d", tt.file, len(environments), tt.nodes)
		}
		ids, advertised := make(map[string]bool), make(map[string]bool)
		for _, env := range environments {
			for name := range env {
				known := slices.ContainsFunc(variables, func(v variable) bool { return v.name == name })
				if !known && name != "POD_NAME" {
					t.Errorf("%s: %s is no variable of a node", tt.file, name)
				}
			}
			get := func(name string) string { return strings.ReplaceAll(env[name], "$(POD_NAME)", "raftkv-0") }
			c, err := parseConfig(get)
			if err != nil {
				t.Errorf("%s: %v", tt.file, err)
			}
			if !slices.Contains(c.join, c.raftAdvertise) || len(c.join) != 3 {
				t.Errorf("%s: RAFT_JOIN is %v, want three with %s", tt.file, c.join, c.raftAdvertise)
			}
			ids[c.nodeID], advertised[c.raftAdvertise] = true, true
		}
		if len(ids) != tt.nodes || len(advertised) != tt.nodes {
			t.Errorf("%s: node IDs %v at %v, want %d of each", tt.file, ids, advertised, tt.nodes)
		}
	}
}

// environmentsIn returns the environments of services (compose) and containers (Kubernetes) below
// a node of a YAML document.
func environmentsIn(node any) (all []environment) {
	switch node := node.(type) {
	case map[string]any:
		if image, _ := node["image"].(string); image != "" {
			env := make(environment)
			set, _ := node["environment"].(map[string]any)
			for name, value := range set {
				env[name], _ = value.(string)
			}
			list, _ := node["env"].([]any)
			for _, entry := range list {
				if entry, ok := entry.(map[string]any); ok {
					name, _ := entry["name"].(string)
					env[name], _ = entry["value"].(string)
				}
			}
			if len(env) > 0 {
				return []environment{env}
			}
		}
		for _, below := range node {
			all = append(all, environmentsIn(below)...)
		}
	case []any:
		for _, below := range node {
			all = append(all, environmentsIn(below)...)
		}
	}
	return all
}
