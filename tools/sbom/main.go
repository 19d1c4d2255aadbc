// Command sbom writes a software bill of materials of Go binaries, as CycloneDX 1.6 in JSON: what the linker has noted in
// each of them, so it tells what is in the binaries and not what a go.mod would allow. The same binaries give the same bytes.
//
//	go run ./tools/sbom BINARY… > sbom.cdx.json
package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sbom BINARY…")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

type document struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

func write(w io.Writer, binaries []string) error {
	d := document{Format: "CycloneDX", SpecVersion: "1.6", Version: 1}
	modules := map[string]component{}
	for _, path := range binaries {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		d.Metadata.Component = component{Type: "application", Ref: info.Main.Path, Name: info.Main.Path}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		name := filepath.Base(path)
		binary := component{Type: "application", Ref: "file:" + name, Name: name,
			Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}}}
		// The standard library is one of the materials, and has vulnerabilities of its own.
		used := []component{module("stdlib", strings.TrimPrefix(info.GoVersion, "go"))}
		for _, m := range info.Deps {
			used = append(used, moduleOf(m))
		}
		on := dependency{Ref: binary.Ref, DependsOn: []string{}}
		for _, c := range used {
			modules[c.Ref] = c
			on.DependsOn = append(on.DependsOn, c.Ref)
		}
		slices.Sort(on.DependsOn)
		d.Components = append(d.Components, binary)
		d.Dependencies = append(d.Dependencies, on)
	}
	for _, c := range modules {
		d.Components = append(d.Components, c)
	}
	slices.SortFunc(d.Components, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(d)
}

// moduleOf is the module that is in the binary: the one that replaces another, where there is one.
func moduleOf(m *debug.Module) component {
	for m.Replace != nil {
		m = m.Replace
	}
	return module(m.Path, m.Version)
}

func module(path, version string) component {
	purl := "pkg:golang/" + path + "@" + version
	return component{Type: "library", Ref: purl, Name: path, Version: version, PURL: purl}
}
