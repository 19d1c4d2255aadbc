package statemachine

import (
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// Settings are the replicated settings. They change by command only.
type Settings struct {
	// SessionTime is S: a session without an entry for so long, in log time, ends. Sessions keep the one in force when
	// they were opened.
	SessionTime time.Duration
	// QuotaBytes bounds the logical size of the key space, history and leases included.
	QuotaBytes int64
	// AutoCompactionRetention is how long history is kept, in log time; zero turns compaction by age off.
	AutoCompactionRetention time.Duration
	// AutoCompactionRevisions is how many revisions are kept; zero turns compaction by count off.
	AutoCompactionRevisions int64
	// LeaseMinimumTTLSeconds is what a shorter TTL is raised to.
	LeaseMinimumTTLSeconds int64
	// RequestIDsMax bounds how many request ids are remembered.
	RequestIDsMax int64
	// RequestIDAge bounds how long a request id is remembered, in log time.
	RequestIDAge time.Duration
}

// DefaultSettings are the settings of a new log.
func DefaultSettings() Settings {
	return Settings{
		SessionTime:             10 * time.Second,
		QuotaBytes:              2 << 30,
		AutoCompactionRetention: time.Hour,
		LeaseMinimumTTLSeconds:  2,
		RequestIDsMax:           100_000,
		RequestIDAge:            time.Hour,
	}
}

// Bounds of the settings. The shortest session time is part of the log's own contract: between two entries log time
// advances by at most half of it.
const (
	minSessionTime         = 10 * time.Second
	maxSessionTime         = time.Hour
	minQuotaBytes          = 1 << 16
	maxQuotaBytes          = 1 << 50
	maxRetention           = 10 * 365 * 24 * time.Hour
	maxCompactionRevisions = 1 << 40
	maxMinimumTTLSeconds   = 86_400
	maxRequestIDs          = 10_000_000
	maxRequestIDAge        = 30 * 24 * time.Hour
)

// settingBound is the closed range of one setting.
type settingBound struct {
	field      string
	value      *int64
	low, high  int64
	zeroAllows bool // zero is allowed beside the range: it turns the function off
}

func settingBounds(c *commandv1.ChangeSettings) []settingBound {
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	return []settingBound{
		{"session_time_milliseconds", c.SessionTimeMilliseconds, ms(minSessionTime), ms(maxSessionTime), false},
		{"quota_bytes", c.QuotaBytes, minQuotaBytes, maxQuotaBytes, false},
		{"auto_compaction_retention_milliseconds", c.AutoCompactionRetentionMilliseconds, 1, ms(maxRetention), true},
		{"auto_compaction_revisions", c.AutoCompactionRevisions, 1, maxCompactionRevisions, true},
		{"lease_minimum_ttl_seconds", c.LeaseMinimumTtlSeconds, 1, maxMinimumTTLSeconds, false},
		{"request_ids_max", c.RequestIdsMax, 1, maxRequestIDs, false},
		{"request_id_age_milliseconds", c.RequestIdAgeMilliseconds, 1, ms(maxRequestIDAge), false},
	}
}

func validateSettings(c *commandv1.ChangeSettings) error {
	for _, b := range settingBounds(c) {
		if b.value == nil || (*b.value == 0 && b.zeroAllows) {
			continue
		}
		if *b.value < b.low {
			return &InvalidError{Field: "change_settings." + b.field, Limit: b.low, Value: *b.value, Err: ErrInvalidSettings}
		}
		if *b.value > b.high {
			return &InvalidError{Field: "change_settings." + b.field, Limit: b.high, Value: *b.value, Err: ErrInvalidSettings}
		}
	}
	return nil
}

// apply changes the settings that are present in a command that has been validated.
func (s *Settings) apply(c *commandv1.ChangeSettings) {
	setDuration := func(target *time.Duration, milliseconds *int64) {
		if milliseconds != nil {
			*target = time.Duration(*milliseconds) * time.Millisecond
		}
	}
	set := func(target, value *int64) {
		if value != nil {
			*target = *value
		}
	}
	setDuration(&s.SessionTime, c.SessionTimeMilliseconds)
	set(&s.QuotaBytes, c.QuotaBytes)
	setDuration(&s.AutoCompactionRetention, c.AutoCompactionRetentionMilliseconds)
	set(&s.AutoCompactionRevisions, c.AutoCompactionRevisions)
	set(&s.LeaseMinimumTTLSeconds, c.LeaseMinimumTtlSeconds)
	set(&s.RequestIDsMax, c.RequestIdsMax)
	setDuration(&s.RequestIDAge, c.RequestIdAgeMilliseconds)
}
