(ns clojars.nailgun
  "The TCP port beside the web port, where clojars.org takes its scp uploads."
  (:require [clojars.stream :as stream])
  (:import [java.io IOException]
           [java.net InetAddress ServerSocket Socket SocketException]))

(defn- start-daemon
  "Runs f on a thread that does not keep the JVM alive when the web server could not start."
  [f]
  (doto (Thread. ^Runnable f)
    (.setDaemon true)
    (.start)))

(defn- write-line [^Socket connection ^String line]
  (.write (.getOutputStream connection) (.getBytes (str line "\n") "UTF-8")))

(defn- answer
  "Greets at once. Acknowledges an upload only after the client has shut its sending side, so that
  a proxy which takes a half-closed connection for a closed one loses the acknowledgement."
  [^Socket connection version]
  (try
    (with-open [connection connection]
      (write-line connection (str "nailgun " version))
      (let [size (stream/drain (.getInputStream connection))]
        (when (pos? size)
          (write-line connection (str "received " size " bytes")))))
    (catch IOException _
      ;; A health check connects and is gone before it has the greeting.
      nil)))

(defn- accept [^ServerSocket server]
  (try
    (.accept server)
    (catch SocketException _
      nil)))

(defn start
  "Listens on 127.0.0.1:port (0: any free one) until the returned socket is closed."
  ^ServerSocket [port version]
  (let [server (ServerSocket. port 50 (InetAddress/getByName "127.0.0.1"))]
    (start-daemon
     #(loop []
        (when-let [connection (accept server)]
          (start-daemon (fn [] (answer connection version)))
          (recur))))
    server))
