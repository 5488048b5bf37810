package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestNamesInPages: every file and name is there that docs/reading.md, and the last paragraph of each lesson, sends a
// reader to. In a paragraph, or a cell of a table, the names behind a file are of that file; those that begin with
// raft. or mux. are of the libraries.
func TestNamesInPages(t *testing.T) {
	libraries := map[string][]string{
		"raft": libraryNames(t, "github.com/hashicorp/raft"), "mux": libraryNames(t, "github.com/gorilla/mux")}
	pages, err := filepath.Glob("../../docs/lessons/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("docs/lessons: got %v, %v, want files", pages, err)
	}
	for _, page := range append(pages, "../../docs/reading.md") {
		text, least := string(read(t, page)), 3
		if _, where, ok := strings.Cut(text, "\n**Where in the code**"); ok {
			text = where
		} else if least = 60; filepath.Base(page) != "reading.md" {
			t.Errorf("%s: no paragraph **Where in the code**", page)
		}
		count := 0
		for _, part := range regexp.MustCompile(`\n\n|\|`).Split(text, -1) {
			var names []string // of file
			file := ""
			for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(part, -1) {
				name := span[1]
				count++
				library, exported, _ := strings.Cut(name, ".")
				switch {
				case strings.HasSuffix(name, ".go"):
					file, names = name, fileNames(t, "../../"+name)
				case libraries[library] != nil:
					if !slices.Contains(libraries[library], exported) {
						t.Errorf("%s: %s is not in the library", page, name)
					}
				case file != "" && !slices.Contains(names, name):
					t.Errorf("%s: %s is not in %s", page, name, file)
				}
			}
		}
		if count < least {
			t.Errorf("%s: got %d names, want at least %d", page, count, least)
		}
	}
}

// libraryNames returns the exported names of a package of another module, as Type.Method those of a type.
func libraryNames(t *testing.T, module string) (names []string) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(strings.TrimSpace(string(dir)) + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: got %v, %v, want files", module, files, err)
	}
	for _, file := range files {
		for _, name := range fileNames(t, file) {
			if last := name[strings.LastIndexByte(name, '.')+1:]; ast.IsExported(last) && !strings.HasSuffix(file, "_test.go") {
				names = append(names, name)
			}
		}
	}
	return names
}

// fileNames returns the names that a file declares: functions, types, constants and variables, and methods and fields,
// alone and behind that of their type.
func fileNames(t *testing.T, path string) (names []string) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	member := func(of ast.Expr, name string) {
		if pointer, ok := of.(*ast.StarExpr); ok {
			of = pointer.X
		}
		if id, ok := of.(*ast.Ident); ok {
			names = append(names, name, id.Name+"."+name)
		}
	}
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names = append(names, d.Name.Name)
			} else {
				member(d.Recv.List[0].Type, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, name := range s.Names {
						names = append(names, name.Name)
					}
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
					if body, ok := s.Type.(*ast.StructType); ok {
						for _, field := range body.Fields.List {
							for _, name := range field.Names {
								member(s.Name, name.Name)
							}
						}
					}
				}
			}
		}
	}
	return names
}
