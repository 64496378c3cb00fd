// The trials of registry.py with Go's net/http.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	root, limited, name string
	content             []byte
	client              = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			Proxy:                 nil,
			ExpectContinueTimeout: 10 * time.Second,
		},
	}
)

// breaking gives the content up to a point, and then fails.
type breaking struct {
	rest []byte
}

func (b *breaking) Read(into []byte) (int, error) {
	if len(b.rest) == 0 {
		time.Sleep(300 * time.Millisecond) // what was sent shall not be lost with the connection
		return 0, errors.New("the source broke")
	}
	size := copy(into, b.rest)
	b.rest = b.rest[size:]
	return size, nil
}

type answer struct {
	version string
	status  int
	fields  http.Header
	content []byte
}

func send(method, url string, fields map[string]string, body io.Reader, length int64) (*answer, error) {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	request.ContentLength = length
	for key, value := range fields {
		request.Header.Set(key, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return &answer{response.Proto, response.StatusCode, response.Header, data}, nil
}

func whole() (io.Reader, int64) {
	return bytes.NewReader(content), int64(len(content))
}

func run(trial string) (*answer, int, error) {
	binary := map[string]string{"Content-Type": "application/octet-stream"}
	with := func(further ...string) map[string]string {
		fields := map[string]string{}
		for key, value := range binary {
			fields[key] = value
		}
		for i := 0; i < len(further); i += 2 {
			fields[further[i]] = further[i+1]
		}
		return fields
	}
	var got *answer
	var err error
	body, length := whole()
	switch trial {
	case "put":
		got, err = send("PUT", root+"/files/"+name+"-put", binary, body, length)
	case "stream":
		// A reader whose length net/http cannot know.
		got, err = send("POST", root+"/files/", binary, io.MultiReader(body), -1)
	case "prefer":
		got, err = send("PUT", root+"/files/"+name+"-prefer", with("Prefer", "resume"), body, length)
	case "expect":
		fields := with("Prefer", "resume", "Expect", "100-continue")
		got, err = send("PUT", root+"/files/"+name+"-expect", fields, body, length)
	case "interim":
		fields := with("Upload-Complete", "?1", "Upload-Draft-Interop-Version", "6")
		got, err = send("POST", root+"/files/", fields, body, length)
	case "resume":
		return resume()
	case "refused":
		got, err = send("PUT", limited+"/files/"+name+"-refused", binary, body, length)
	case "range":
		fields := map[string]string{"Range": "bytes=1000-"}
		got, err = send("GET", root+"/files/"+name+"-put", fields, nil, 0)
	case "delete":
		got, err = send("DELETE", root+"/files/"+name+"-put", nil, nil, 0)
	default:
		err = errors.New("no such trial")
	}
	return got, -1, err
}

func resume() (*answer, int, error) {
	first := map[string]string{
		"Upload-Complete": "?0", "Upload-Length": strconv.Itoa(len(content)),
	}
	created, err := send("POST", root+"/files/", first, nil, 0)
	if err != nil {
		return nil, 0, err
	}
	upload := created.fields.Get("Location")
	fields := map[string]string{
		"Content-Type": "application/partial-upload", "Upload-Complete": "?1", "Upload-Offset": "0",
	}
	half := &breaking{content[:len(content)/2]}
	if _, err = send("PATCH", upload, fields, half, int64(len(content))); err != nil {
		fmt.Fprintln(os.Stderr, "cut:", err)
	}
	seen, err := send("HEAD", upload, nil, nil, 0)
	if err != nil {
		return nil, 0, err
	}
	fields["Upload-Offset"] = seen.fields.Get("Upload-Offset")
	offset, err := strconv.Atoi(fields["Upload-Offset"])
	if err != nil {
		return nil, 0, err
	}
	rest := content[offset:]
	got, err := send("PATCH", upload, fields, bytes.NewReader(rest), int64(len(rest)))
	return got, offset, err
}

func main() {
	root, limited, name = os.Args[1], os.Args[2], os.Args[4]
	var err error
	if content, err = os.ReadFile(os.Args[3]); err != nil {
		panic(err)
	}
	for _, trial := range os.Args[5:] {
		line := map[string]any{"trial": trial, "status": 0}
		got, offset, err := run(trial)
		if err != nil {
			line["error"] = err.Error()
		} else {
			fields := map[string]string{}
			for key, values := range got.fields {
				fields[strings.ToLower(key)] = strings.Join(values, ", ")
			}
			sum := sha256.Sum256(got.content)
			line["status"], line["fields"] = got.status, fields
			line["version"] = got.version
			line["digest"] = hex.EncodeToString(sum[:])
			if len(got.content) <= 4096 {
				line["text"] = string(got.content)
			}
			if offset >= 0 {
				line["offset"] = offset
			}
		}
		said, _ := json.Marshal(line)
		fmt.Println(string(said))
	}
}
