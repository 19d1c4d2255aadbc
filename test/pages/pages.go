// Package pages reads the commands that a page of the documentation tells its reader to type, for tests that type them.
//
// Commands stand in blocks between lines of three backquotes without a language. After a command, behind " # ", may stand what
// it promises: parts with "; " between them. The first part is text that the output has, whatever the white space; none where it
// is in parentheses. A part "exit code N" is the exit code, which is 0 otherwise. Other parts explain.
package pages

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Step is one command and its promise.
type Step struct {
	// Line is the whole line, for failures.
	Line string
	// Command is the line without the promise; Words are its words, unquoted.
	Command string
	Words   []string
	// Output is what the output must have, with single spaces for white space; empty for anything.
	Output   string
	ExitCode int
}

// Steps returns the commands of a page in order.
func Steps(page string) (steps []Step, err error) {
	block := ""
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if fence, found := strings.CutPrefix(line, "```"); found {
			switch {
			case block != "":
				block = ""
			case fence == "":
				block = "commands"
			default:
				block = fence
			}
			continue
		}
		if block != "commands" || line == "" {
			continue
		}
		step, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		steps = append(steps, step)
	}
	if block != "" {
		return nil, errors.New("a block has no end")
	}
	return steps, nil
}

func parse(line string) (step Step, err error) {
	command, promise, _ := strings.Cut(line, " # ")
	step = Step{Line: line, Command: strings.TrimSpace(command)}
	if step.Words, err = split(step.Command); err != nil {
		return step, err
	}
	for i, part := range strings.Split(promise, "; ") {
		if code, found := strings.CutPrefix(part, "exit code "); found {
			if step.ExitCode, err = strconv.Atoi(code); err != nil {
				return step, fmt.Errorf("exit code %q: want a number", code)
			}
		} else if i == 0 && !strings.HasPrefix(part, "(") {
			step.Output = normal(part)
		}
	}
	return step, nil
}

// split splits a command at white space outside of single quotes.
func split(command string) (words []string, err error) {
	var word strings.Builder
	quoted, begun := false, false
	for _, char := range command {
		switch {
		case char == '\'':
			quoted, begun = !quoted, true
		case char == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(char)
			begun = true
		}
	}
	if quoted {
		return nil, errors.New("a quote has no end")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

func normal(text string) string { return strings.Join(strings.Fields(text), " ") }

// Check compares what a command did with its promise. inserted replaces the placeholders of the page by what the reader puts
// in their place; nil for none.
func (s Step) Check(output string, exitCode int, inserted *strings.Replacer) error {
	promised := s.Output
	if inserted != nil {
		promised = inserted.Replace(promised)
	}
	if exitCode != s.ExitCode || !strings.Contains(normal(output), promised) {
		return fmt.Errorf("%s\nexit code %d, want %d; want %q in:\n%s", s.Line, exitCode, s.ExitCode, promised, output)
	}
	return nil
}
