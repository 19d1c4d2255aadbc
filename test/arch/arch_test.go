// Package arch holds the rules of the architecture as tests: who may import whom, where a third party has its home, and
// that every package says what it promises. docs/ARCHITECTURE.md draws the picture; this is what keeps it true.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/logmirror/logmirror/"

type goPackage struct {
	ImportPath  string
	Dir         string
	GoFiles     []string
	TestGoFiles []string
	Imports     []string
}

func (p goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,Imports", "./...")
	command.Dir = "../.."
	output, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// mayImport lists, for each room of the project, which other rooms it may import. A room is the longest prefix listed.
// Every room may import api/proto.
var mayImport = map[string]struct {
	rooms  []string
	reason string
}{
	"api/proto":                {nil, "the contract between parts depends on no part"},
	"internal/durable":         {[]string{"internal/disk"}, "whole-file records know nothing of what they hold"},
	"internal/disk":            {nil, "the seam to files knows nothing of what is stored"},
	"internal/wan":             {nil, "the seam to the network knows nothing of what is said"},
	"internal/directstream":    {nil, "streams over connections know nothing of what is said on them"},
	"internal/wanlink":         {[]string{"internal/wan", "internal/tlsfiles"}, "regions between processes: the same links, relayed and steered"},
	"internal/flagfile":        {nil, "process plumbing"},
	"internal/tlsfiles":        {nil, "process plumbing"},
	"internal/observe":         {[]string{"internal/tlsfiles", "internal/version"}, "process plumbing"},
	"internal/version":         {nil, "process plumbing"},
	"internal/heap":            {nil, "process plumbing"},
	"internal/timerslack":      {nil, "process plumbing"},
	"internal/boottime":        {nil, "process plumbing"},
	"logservice":               {[]string{"logservice", "internal"}, "a log member knows entries, never keys: it shares only api/proto and internal with the frontend side"},
	"logservice/segment":       {[]string{"internal/disk"}, "the log on disk knows no Raft"},
	"logservice/peer":          {[]string{"internal"}, "messages between members carry, they do not decide"},
	"lease":                    {nil, "the replicated lease table is pure"},
	"lease/keeper":             {[]string{"lease", "statemachine", "mirror"}, "the clocked side sits above the table and the mirror"},
	"statemachine":             {[]string{"statemachine/keyspace", "lease", "auth"}, "apply reads nothing but entries and its own tables"},
	"statemachine/keyspace":    {nil, "versions of keys know no commands"},
	"statemachine/image":       {[]string{"statemachine"}, "the durable copy holds a machine; the machine knows no disk"},
	"statemachine/checkpoint":  {[]string{"statemachine"}, "a checkpoint is a machine's state as bytes; who stores and sends it is the caller's affair"},
	"statemachine/machinetest": {[]string{"statemachine"}, "for tests of what stands on the machine"},
	"logclient":                {[]string{"internal"}, "the log as a caller sees it knows no state machine"},
	"mirror":                   {[]string{"logclient", "statemachine", "lease", "internal"}, "the mirror joins the log to the state machine"},
	"idgen":                    {[]string{"statemachine"}, "ids are made of what the state machine granted; who proposes is the caller's affair"},
	"watch":                    {[]string{"statemachine", "lease"}, "the hub reads events and history, it proposes nothing"},
	"frontend":                 {[]string{"frontend/etcd", "watch", "lease", "mirror", "statemachine", "logclient", "internal", "idgen"}, "a region's server stands on the parts below it"},
	"frontend/etcd":            {[]string{"frontend", "watch", "lease", "mirror", "statemachine", "internal"}, "etcd's services stand on the same parts"},
	"client":                   {nil, "the Go SDK must be usable without the server's code"},
	"playground":               {[]string{"logservice", "frontend", "internal"}, "a cluster in one process is members and frontends, wired"},
	"cmd/logsvc":               {[]string{"logservice", "internal"}, "flags, wiring and signals only"},
	"cmd/frontend":             {[]string{"frontend", "internal"}, "flags, wiring and signals only"},
	"cmd/wanlink":              {[]string{"internal"}, "flags, wiring and signals only"},
	"cmd/kvctl":                {[]string{"statemachine", "cmd/kvctl", "client", "playground", "logservice", "statemachine/image", "internal"}, "the command line is a client, plus offline tools: they read a log, and write the directories of a new one"},
	"tools":                    {nil, "tools of the build know no part"},
	"docs":                     {[]string{"client"}, "what a reader of the tutorials writes stands on the SDK alone"},
	"test":                     {[]string{"*"}, "tests may look at everything"},
	"logservice/checkpoint":    {[]string{"internal/disk"}, "checkpoints on disk are bytes with a name"},
}

func room(name string) (best string) {
	for r := range mayImport {
		if (name == r || strings.HasPrefix(name, r+"/")) && len(r) > len(best) {
			best = r
		}
	}
	return best
}

func TestImportsRunDownwards(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.name())
		if from == "" {
			t.Errorf("%s belongs to no room: add it to mayImport with its reason", p.name())
			continue
		}
		rule := mayImport[from]
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module)
			if !ours || strings.HasPrefix(to, "api/proto/") || room(to) == from {
				continue
			}
			if !slices.ContainsFunc(rule.rooms, func(allowed string) bool {
				return allowed == "*" || to == allowed || strings.HasPrefix(to, allowed+"/")
			}) {
				t.Errorf("%s imports %s: %s", p.name(), to, rule.reason)
			}
		}
	}
}

// homes lists the only rooms in which a third party may be imported.
var homes = []struct {
	prefix string
	rooms  []string
	reason string
}{
	{"go.etcd.io/raft", []string{"logservice"}, "Raft is the log service's own affair"},
	{"go.etcd.io/bbolt", []string{"statemachine/image"}, "only the image is kept in bbolt"},
	{"go.etcd.io/etcd/api", []string{"frontend/etcd"}, "etcd's API types end at the etcd services"},
	{"go.etcd.io/etcd/client", []string{"test", "docs"}, "etcd's client is what users bring; only tests and tutorials may"},
	{"github.com/spf13/cobra", []string{"cmd"}, "commands end at cmd"},
	{"google.golang.org/grpc", []string{"api/proto", "logservice", "logclient", "mirror", "lease/keeper", "frontend", "client", "playground", "cmd", "internal/directstream", "internal/tlsfiles", "internal/observe", "test"}, "the cores speak to no network"},
}

// pure lists what the deterministic core may not touch: apply reads no clock, random source, environment, network or disk.
var pure = struct {
	rooms  []string
	banned []string
}{
	rooms:  []string{"statemachine", "statemachine/keyspace", "statemachine/checkpoint", "lease"},
	banned: []string{"math/rand", "crypto/rand", "os", "net", "io/fs", "path/filepath", "syscall", "log/slog", "google.golang.org/grpc"},
}

// clockCalls are the functions of package time that ask or wait for a clock; its types and units are harmless.
var clockCalls = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func TestApplyReadsNoClock(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains(pure.rooms, p.name()) {
			continue
		}
		for _, file := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(node ast.Node) bool {
				selector, ok := node.(*ast.SelectorExpr)
				if !ok || !slices.Contains(clockCalls, selector.Sel.Name) {
					return true
				}
				if name, ok := selector.X.(*ast.Ident); ok && name.Name == "time" {
					t.Errorf("%s/%s calls time.%s: all that apply knows of time is the entry's stamp", p.name(), file, selector.Sel.Name)
				}
				return true
			})
		}
	}
}

func TestThirdPartiesAtHome(t *testing.T) {
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			for _, home := range homes {
				if path != home.prefix && !strings.HasPrefix(path, home.prefix+"/") {
					continue
				}
				if !slices.ContainsFunc(home.rooms, func(r string) bool {
					return p.name() == r || strings.HasPrefix(p.name(), r+"/")
				}) {
					t.Errorf("%s imports %s: %s", p.name(), path, home.reason)
				}
			}
		}
	}
}

func TestApplyIsPure(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains(pure.rooms, p.name()) {
			continue
		}
		for _, path := range p.Imports {
			if p.name() == "statemachine/keyspace" && path == "math/rand/v2" {
				continue // spreads readers over counters; the writer draws nothing
			}
			if slices.ContainsFunc(pure.banned, func(b string) bool { return path == b || strings.HasPrefix(path, b+"/") }) {
				t.Errorf("%s imports %s: the same entries must give the same state everywhere", p.name(), path)
			}
		}
	}
}

func TestEveryPackageSaysWhatItPromises(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.name(), "api/proto/") || len(p.GoFiles) == 0 {
			continue // generated; or tests only
		}
		comments := 0
		for _, file := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Doc != nil && strings.HasPrefix(parsed.Doc.Text(), "Package ") || parsed.Name.Name == "main" && parsed.Doc != nil {
				comments++
			}
		}
		if comments != 1 {
			t.Errorf("%s has %d package comments; want one", p.name(), comments)
		}
	}
}
