// Command sbom writes a software bill of materials of Go binaries, as CycloneDX 1.6 in JSON: what the linker has noted in
// each of them, so it tells what is in the binaries and not what a go.mod would allow. The same binaries give the same bytes.
//
//	go run ./tools/sbom VERSION BINARY… > sbom.cdx.json
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
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom VERSION BINARY…")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

type document struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
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

func write(w io.Writer, version string, binaries []string) error {
	d := document{Format: "CycloneDX", SpecVersion: "1.6", Version: 1}
	modules := map[string]component{}
	whole := dependency{DependsOn: []string{}}
	all := sha256.New()
	for _, path := range binaries {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		whole.Ref = module(info.Main.Path, version).Ref
		d.Metadata.Component = module(info.Main.Path, version)
		d.Metadata.Component.Type = "application"
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		name := filepath.Base(path)
		all.Write(sum[:])
		binary := component{Type: "application", Ref: "file:" + name, Name: name, Version: version,
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
		whole.DependsOn = append(whole.DependsOn, binary.Ref)
	}
	d.Dependencies = append(d.Dependencies, whole)
	d.Serial = serial(all.Sum(nil))
	for _, c := range modules {
		d.Components = append(d.Components, c)
	}
	slices.SortFunc(d.Components, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(d)
}

// serial is a UUID (of version 8, RFC 9562) made of what the document is about.
func serial(sum []byte) string {
	id := slices.Clone(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
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
