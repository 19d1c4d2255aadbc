package command

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice"
	logcheckpoint "github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

// recoverFlags are those of log recover.
type recoverFlags struct {
	beginFlags
	backups    []string
	acceptLoss bool
}

func newLogRecover(o *options) *cobra.Command {
	var f recoverFlags
	c := &cobra.Command{
		Use:   "recover DIR… --data-dir NEW --initial-cluster N1=ADDR1,… --accept-loss",
		Short: "Make a new cluster of what the loss of a quorum has left, for good, without a cluster",
		Long: "For when a majority of the log's voters is lost for good. While their disks can be read, start them instead, wherever:\n" +
			"nothing is lost then.\n\n" +
			"Name the data directories of ALL stopped members that can be read, and with --backup what kvctl snapshot save\n" +
			"--consistency serializable got of frontends that still run. What holds most of the log is taken, to its last entry, and\n" +
			"becomes the state of a new cluster with an id of its own, as with kvctl snapshot restore; none of what was named is\n" +
			"changed. Writes that were acknowledged and are on lost disks only are LOST. Without --accept-loss this command tells what\n" +
			"it found, and does nothing.\n\n" +
			"Afterwards start the members with the directories NEW/N1, …, and frontends with empty ones. Members and frontends with\n" +
			"directories of the old cluster are refused by the new one: what they hold beyond it is never mixed in.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && len(f.backups) == 0 {
				return errors.New("want a member's data directory or a --backup at least")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return o.recoverLog(args, &f) },
	}
	f.add(c, "what is recovered, lost writes included")
	c.Flags().StringSliceVar(&f.backups, "backup", nil, "`file` that a frontend which still runs has saved its state to")
	c.Flags().BoolVar(&f.acceptLoss, "accept-loss", false, "make the new cluster, although writes may be lost")
	return c
}

// remains is one thing that was left, and how much of the log it holds.
type remains struct {
	Source string `json:"source"`
	// Member is empty for a backup.
	Member    string `json:"member,omitempty"`
	Voter     bool   `json:"voter"`
	LastTerm  uint64 `json:"last_term"`
	LastIndex uint64 `json:"last_index"`
	ClusterID string `json:"cluster_id"`
	Taken     bool   `json:"taken"`

	// One of both is set.
	survivor *logservice.Survivor
	backup   *checkpoint.Backup
}

func (o *options) recoverLog(dirs []string, f *recoverFlags) (err error) {
	var members []logservice.InitialMember
	if f.acceptLoss {
		if members, err = f.members(); err != nil {
			return err
		}
	}
	all, err := openRemains(dirs, f.backups)
	defer func() {
		for _, r := range all {
			if r.survivor != nil {
				err = errors.Join(err, r.survivor.Close())
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := sameCluster(all); err != nil {
		return exitError{exitUsage, err}
	}
	best := mostAdvanced(all)
	best.Taken = true
	voters := newestConfiguration(all)
	if !f.acceptLoss {
		o.tellRemains(all, best, voters)
		return exitError{exitUsage, errors.New("nothing was done: --accept-loss makes the new cluster")}
	}
	machine, err := best.state()
	if err != nil {
		return fmt.Errorf("%s: %w", best.Source, err)
	}
	begun, err := f.begin(machine, members)
	if err != nil {
		return err
	}
	if o.output == "text" {
		o.tellRemains(all, best, voters)
	}
	return o.printBegun("recovered", best.Source, &f.beginFlags, begun)
}

// openRemains opens all that was named. After an error it returns what is open.
func openRemains(dirs, backups []string) (all []*remains, err error) {
	for _, dir := range dirs {
		s, err := logservice.OpenSurvivor(disk.OS(), dir)
		if err != nil {
			return all, err
		}
		all = append(all, &remains{Source: dir, Member: s.Name, LastTerm: s.LastTerm, LastIndex: s.LastIndex,
			ClusterID: fmt.Sprintf("%016x", s.ClusterID), survivor: s})
	}
	for _, path := range backups {
		b, _, err := readBackup(path)
		if err != nil {
			return all, err
		}
		all = append(all, &remains{Source: path, LastTerm: b.Header.Term, LastIndex: b.Header.Index,
			ClusterID: fmt.Sprintf("%016x", b.Header.ClusterID), backup: b})
	}
	return all, nil
}

// sameCluster refuses what was left of two clusters, and a directory or a member that is named twice.
func sameCluster(all []*remains) error {
	for i, r := range all {
		if r.survivor != nil && r.survivor.ClusterID == 0 {
			return fmt.Errorf("%s: this member never learned which cluster it is of: its log is of no use", r.Source)
		}
		for _, other := range all[:i] {
			switch {
			case r.ClusterID != other.ClusterID:
				return fmt.Errorf("%s is of cluster %s, %s of %s", r.Source, r.ClusterID, other.Source, other.ClusterID)
			case r.survivor != nil && other.survivor != nil && r.survivor.MemberID == other.survivor.MemberID:
				return fmt.Errorf("%s and %s are both of member %q", other.Source, r.Source, r.Member)
			}
		}
	}
	return nil
}

// mostAdvanced is what holds the most of what was ever published.
func mostAdvanced(all []*remains) *remains {
	return slices.MaxFunc(all, func(a, b *remains) int {
		return logservice.ComparePoints(a.LastTerm, a.LastIndex, b.LastTerm, b.LastIndex)
	})
}

// newestConfiguration notes who votes in the newest configuration that is known, and returns its voters' names.
func newestConfiguration(all []*remains) (voters []string) {
	var newest *logservice.Survivor
	for _, r := range all {
		if r.survivor != nil && (newest == nil || r.survivor.MembershipIndex > newest.MembershipIndex) {
			newest = r.survivor
		}
	}
	if newest == nil {
		return nil
	}
	for _, m := range newest.Members {
		if m.GetRole() != logv1.Member_ROLE_VOTER {
			continue
		}
		voters = append(voters, m.GetName())
		for _, r := range all {
			r.Voter = r.Voter || r.survivor != nil && r.survivor.MemberID == m.GetId()
		}
	}
	slices.Sort(voters)
	return voters
}

// tellRemains says what there is, what is taken, and plainly what may be lost.
func (o *options) tellRemains(all []*remains, best *remains, voters []string) {
	if o.output == "json" {
		_ = o.print(map[string]any{"remains": all, "voters": voters}, nil)
		return
	}
	var readable, missing []string
	for _, r := range all {
		what := "a backup"
		if r.survivor != nil {
			if what = "member " + r.Member; !r.Voter {
				what += ", which does not vote"
			}
		}
		note := ""
		if r == best {
			note = "   <- taken"
		}
		o.line("%s (%s): term %d, up to entry %d%s", r.Source, what, r.LastTerm, r.LastIndex, note)
	}
	for _, name := range voters {
		if slices.ContainsFunc(all, func(r *remains) bool { return r.Voter && r.Member == name }) {
			readable = append(readable, name)
		} else {
			missing = append(missing, name)
		}
	}
	switch {
	case len(voters) > 0 && len(readable) > len(voters)/2:
		o.line("These are a majority of the voters (%s): nothing that was acknowledged is lost. Starting them as they are keeps the\n"+
			"cluster; a new one is not needed.", strings.Join(voters, ", "))
	default:
		o.line("WARNING: writes that were acknowledged after entry %d of term %d may be LOST: they were on the disks of a majority, and\n"+
			"these are none (missing: %s). What frontends or clients have seen of such writes is not undone. If any\n"+
			"other disk or a running frontend can be read, name it too.", best.LastIndex, best.LastTerm, orNobody(missing))
	}
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "not known here"
	}
	return strings.Join(names, ", ")
}

// state is what the log comes to at its last entry.
func (r *remains) state() (*statemachine.Machine, error) {
	if r.backup != nil {
		return r.backup.Machine, nil
	}
	machine := statemachine.New(statemachine.Options{})
	stored, err := r.survivor.Checkpoint()
	if err != nil {
		return nil, err
	}
	if stored != nil {
		if machine, err = restoreCheckpoint(stored); err != nil {
			return nil, errors.Join(err, stored.Close())
		}
		if err := stored.Close(); err != nil {
			return nil, err
		}
	}
	for entry, err := range r.survivor.Entries(machine.Index() + 1) {
		if err != nil {
			return nil, err
		}
		var envelope *logv1.Envelope
		if len(entry.GetEnvelope()) > 0 {
			envelope = &logv1.Envelope{}
			if err := proto.Unmarshal(entry.GetEnvelope(), envelope); err != nil {
				return nil, fmt.Errorf("entry %d: %w", entry.GetIndex(), err)
			}
		}
		if _, err := machine.Apply(entry.GetIndex(), entry.GetTerm(), entry.GetKind(), envelope, false); err != nil {
			return nil, err
		}
		for machine.Maintain() { //nolint:revive // it does what can wait, a slice at a time
		}
	}
	if machine.Index() != r.LastIndex {
		return nil, fmt.Errorf("the state ends at entry %d, the log at %d", machine.Index(), r.LastIndex)
	}
	return machine, nil
}

func restoreCheckpoint(stored *logcheckpoint.Reader) (*statemachine.Machine, error) {
	reader, err := checkpoint.NewReader(&checkpointBytes{r: stored})
	if err != nil {
		return nil, err
	}
	machine, _, err := reader.Restore(statemachine.Options{}, nil)
	return machine, err
}

// checkpointBytes reads a stored checkpoint from its beginning.
type checkpointBytes struct {
	r      *logcheckpoint.Reader
	offset int64
}

func (c *checkpointBytes) Read(p []byte) (int, error) {
	b, err := c.r.ReadFrom(c.offset)
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	c.offset += int64(n)
	return n, nil
}

var _ io.Reader = (*checkpointBytes)(nil)
