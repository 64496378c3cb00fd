// The tus trials of registry.py with github.com/eventials/go-tus.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	tus "github.com/eventials/go-tus"
)

// memory is the store of URLs that go-tus asks for.
type memory map[string]string

func (m memory) Get(key string) (string, bool) { url, found := m[key]; return url, found }
func (m memory) Set(key, url string)           { m[key] = url }
func (m memory) Delete(key string)             { delete(m, key) }
func (m memory) Close()                        {}

func run(trial, root, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	upload, err := tus.NewUploadFromFile(file)
	if err != nil {
		return "", err
	}
	config := tus.DefaultConfig()
	config.Resume, config.Store = true, memory{}
	if trial != "tus-whole" {
		config.ChunkSize = 700_000
	}
	config.OverridePatchMethod = trial == "tus-override"
	client, err := tus.NewClient(root+"/files/", config)
	if err != nil {
		return "", err
	}
	uploader, err := client.CreateUpload(upload)
	if err != nil {
		return "", err
	}
	if trial == "tus-resume" {
		// One piece, and then another client that knows the URL only.
		if err = uploader.UploadChunck(); err != nil {
			return "", err
		}
		if client, err = tus.NewClient(root+"/files/", config); err != nil {
			return "", err
		}
		if uploader, err = client.ResumeUpload(upload); err != nil {
			return "", err
		}
		if uploader.Offset() != 700_000 {
			return "", fmt.Errorf("the offset is %d", uploader.Offset())
		}
	}
	return uploader.Url(), uploader.Upload()
}

func main() {
	for _, trial := range os.Args[5:] {
		line := map[string]any{"trial": trial}
		url, err := run(trial, os.Args[1], os.Args[3])
		if err != nil {
			line["error"] = err.Error()
		} else {
			line["url"] = url
		}
		said, _ := json.Marshal(line)
		fmt.Println(string(said))
	}
}
