(ns clojars.web
  "The web side: a page for people, and routes that show tests what an instance does."
  (:require [clojars.stream :as stream]
            [clojure.string :as string]
            [compojure.coercions :refer [as-int]]
            [compojure.core :refer [GET POST PUT routes]]
            [compojure.route :as route]
            [hiccup.page :refer [html5]]
            [ring.middleware.params :refer [assoc-query-params]])
  (:import [java.lang ProcessHandle]))

(defn- content [type body]
  {:status 200
   :headers {"Content-Type" (str type "; charset=utf-8")}
   :body body})

(defn- text [body]
  (content "text/plain" (str body)))

(defn- json
  "An object of numbers. The keys are ids of the routes below and need no escapes."
  [numbers]
  (content "application/json"
           (str "{"
                (string/join ", " (for [[id number] numbers] (format "\"%s\": %d" id number)))
                "}")))

(defn- page [version]
  (html5
   [:head [:title "Clojars " version]]
   [:body
    [:h1 "Clojars " version]
    [:p "A community repository for open source Clojure libraries."]]))

(defn- slow
  "Says so first: whoever stops this process can then know that a request is in flight. Answers
  nothing until the end, so that a proxy may still give the request to the other instance."
  [ms]
  (println "answering in" ms "ms")
  (Thread/sleep ms)
  (text (str "answered after " ms " ms")))

(defn- upload
  "Writes what was sent, and answers after the ms that making an index of it would take."
  [uploads upload-log {:keys [request-method params body]}]
  (let [id (:id params "-")
        size (stream/drain body)]
    (swap! uploads update id (fnil inc 0))
    (when upload-log
      ;; One short write to a file opened for appending: two instances may share the log.
      (spit upload-log
            (str (string/upper-case (name request-method)) " " id " " size "\n")
            :append true))
    (some-> (:ms params) as-int Thread/sleep)
    (text size)))

(defn- wrap-query-params
  "Ring's wrap-params would also read the body of a form, which the uploads must see."
  [handler]
  (fn [request]
    (handler (assoc-query-params request "UTF-8"))))

(defn handler
  "version is what the pages say; upload-log a file for a line an upload, METHOD ID BYTES, or nil."
  [{:keys [version upload-log]}]
  (let [uploads (atom (sorted-map))
        id #"[\w.-]+"]
    (wrap-query-params
     (routes
      (GET "/" [] (page version))
      (GET "/version" [] (text version))
      (GET "/pid" [] (text (.pid (ProcessHandle/current))))
      (GET "/slow" [ms :<< as-int] (slow ms))
      (GET "/uploads" [] (json @uploads))
      (POST "/upload" request (upload uploads upload-log request))
      (POST ["/upload/:id" :id id] request (upload uploads upload-log request))
      (PUT ["/upload/:id" :id id] request (upload uploads upload-log request))
      (route/not-found "Not found")))))
