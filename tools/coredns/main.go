// CoreDNS with the plugins that the node of the e2e tests uses: scripts/kube builds it.
// Upstream's own main has all plugins, with the clients of three clouds; they would be
// most of the build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which a query passes them: that of upstream, but with `template` last, to
	// answer what nothing else does.
	dnsserver.Directives = []string{
		"ready", "errors", "log", "cache", "loadbalance", "hosts", "kubernetes", "template",
	}
	coremain.Run()
}
