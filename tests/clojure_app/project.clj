(defproject clojars-web "0.1.0"
  :description "A small web application that is deployed the way clojars-web is."
  :url "http://clojars.org"
  ;; Exactly the versions in Debian's maven-repo: the builds run offline.
  :dependencies [[org.clojure/clojure "1.11.1"]
                 [ring/ring-core "1.8.2"]
                 [ring/ring-jetty-adapter "1.8.2"]
                 [compojure "1.6.0"]
                 [hiccup "1.0.5"]]
  ;; For what Leiningen runs, not for the jar: a failed build ends with its error and does not leave
  ;; a report in /tmp for ever; and so short a run is not worth the JVM's second compiler.
  :jvm-opts ["-Dclojure.main.report=stderr" "-XX:TieredStopAtLevel=1"]
  :main ^:skip-aot clojars.main
  :profiles {:dev {:dependencies [[ring/ring-mock "0.4.0"]]}
             :uberjar {:aot :all}})
