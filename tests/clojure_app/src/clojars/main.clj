(ns clojars.main
  "Starts one instance, with all its settings from the environment:
  PORT and NAILGUN_PORT, STOP (graceful or abrupt, the default) and UPLOAD_LOG (a file, optional)."
  (:gen-class)
  (:require [clojars.nailgun :as nailgun]
            [clojars.web :as web]
            [clojure.java.io :as io]
            [clojure.string :as string]
            [ring.adapter.jetty :refer [run-jetty]])
  (:import [org.eclipse.jetty.server Server]
           [org.eclipse.jetty.server.handler StatisticsHandler]))

(defn- version []
  (string/trim (slurp (io/resource "clojars/version.txt"))))

(defn- port [variable]
  (or (some-> (System/getenv variable) parse-long)
      (throw (ex-info (str variable " is no port number") {}))))

(defn- stop-gracefully
  "On SIGTERM closes the listener and finishes the requests in flight. The StatisticsHandler is what
  counts them: with the shutdown hook alone Jetty cuts them off."
  [^Server server]
  (let [in-flight (StatisticsHandler.)]
    (.setHandler in-flight (.getHandler server))
    (doto server
      (.setHandler in-flight)
      (.setStopTimeout 30000)
      (.setStopAtShutdown true))))

(defn- stop-abruptly
  "Leaves SIGTERM to the JVM, which ends at once when no shutdown hook holds it up."
  [_server])

(defn- start-web ^Server [version]
  (run-jetty (web/handler {:version version :upload-log (System/getenv "UPLOAD_LOG")})
             {:host "127.0.0.1"
              :port (port "PORT")
              :join? false
              :configurator (case (System/getenv "STOP")
                              "graceful" stop-gracefully
                              ("abrupt" nil) stop-abruptly)}))

(defn -main []
  (let [version (version)]
    (println "clojars-web" version "starts")
    (nailgun/start (port "NAILGUN_PORT") version)
    (.join (start-web version))))
