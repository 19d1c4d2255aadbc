package logservice

import (
	"fmt"
	"slices"
	"testing"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

func digestReport(session, index uint64, digest string) *logv1.DigestReport {
	return &logv1.DigestReport{Session: session, Index: index, ApplyVersion: 1, DigestVersion: 1, Digest: []byte(digest)}
}

// verdicts writes who was told what, by session.
func verdicts(list []*logv1.DigestVerdict) []string {
	told := []string{}
	for _, v := range list {
		kind := "minority"
		if v.GetVerdict() == logv1.DigestVerdict_VERDICT_TIE {
			kind = "tie"
		}
		told = append(told, fmt.Sprintf("%d@%d %s %d/%d", v.GetSession(), v.GetIndex(), kind, v.GetAgreeing(), v.GetReports()))
	}
	slices.Sort(told)
	return told
}

func TestDigestsAreJudged(t *testing.T) {
	for name, row := range map[string]struct {
		reports []string // by session from 1; "" for none
		want    []string
	}{
		"all agree":              {[]string{"a", "a", "a"}, nil},
		"one alone":              {[]string{"a"}, nil},
		"one of three":           {[]string{"a", "b", "a"}, []string{"2@9 minority 1/3"}},
		"two disagree":           {[]string{"a", "b"}, []string{"1@9 tie 1/2", "2@9 tie 1/2"}},
		"two pairs and one":      {[]string{"a", "b", "a", "b", "c"}, []string{"1@9 tie 2/5", "2@9 tie 2/5", "3@9 tie 2/5", "4@9 tie 2/5", "5@9 minority 1/5"}},
		"two in five":            {[]string{"a", "b", "a", "c", "a"}, []string{"2@9 minority 1/5", "4@9 minority 1/5"}},
		"most agree, not half":   {[]string{"a", "a", "b", "c", "d"}, []string{"3@9 minority 1/5", "4@9 minority 1/5", "5@9 minority 1/5"}},
		"who is away is no vote": {[]string{"a", "", "a", "b"}, []string{"4@9 minority 1/3"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := digests{waitTicks: 5}
			for i, digest := range row.reports {
				if digest != "" {
					d.add(digestReport(uint64(i+1), 9, digest), 100+i%2)
				}
			}
			if early := d.judge(103); len(early) > 0 {
				t.Errorf("judged early: %v", verdicts(early))
			}
			if have := verdicts(d.judge(106)); !slices.Equal(have, row.want) {
				t.Errorf("%v, want %v", have, row.want)
			}
			if again := d.judge(107); len(again) > 0 {
				t.Errorf("told twice: %v", verdicts(again))
			}
			if (d.alarm != "") != (row.want != nil) {
				t.Errorf("alarm %q", d.alarm)
			}
		})
	}
}

// A mirror that lags is judged when its report comes; other versions and other indexes are not compared with it.
func TestLateDigestsAreJudgedAtOnce(t *testing.T) {
	d := digests{waitTicks: 5}
	d.add(digestReport(1, 9, "a"), 100)
	d.add(digestReport(2, 9, "a"), 100)
	other := digestReport(3, 9, "x")
	other.ApplyVersion = 2
	d.add(other, 100)
	d.add(digestReport(1, 12, "b"), 100)
	if told := d.judge(110); len(told) > 0 {
		t.Fatalf("%v", verdicts(told))
	}
	d.add(digestReport(4, 9, "z"), 200)
	if told := verdicts(d.judge(200)); !slices.Equal(told, []string{"4@9 minority 1/3"}) {
		t.Errorf("%v", told)
	}
	d.add(digestReport(5, 9, "a"), 201)
	if told := d.judge(201); len(told) > 0 {
		t.Errorf("%v", verdicts(told))
	}
}

func TestDigestsAreBounded(t *testing.T) {
	d := digests{waitTicks: 5}
	for index := range uint64(10 * maxDigestRounds) {
		d.add(digestReport(1, index+1, "a"), int(index))
	}
	d.add(digestReport(1, 1, "a"), 0)
	if len(d.rounds) != maxDigestRounds || d.rounds[0].index != 9*maxDigestRounds+1 {
		t.Errorf("%d rounds from %d", len(d.rounds), d.rounds[0].index)
	}
	for session := range uint64(maxDigestReports + 10) {
		d.add(digestReport(session+1, 10*maxDigestRounds, "a"), 0)
	}
	if n := len(d.rounds[maxDigestRounds-1].digests); n != maxDigestReports {
		t.Errorf("%d reports at one index", n)
	}
}
