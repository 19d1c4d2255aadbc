//go:build !race

package logservice

const raceEnabled = false
